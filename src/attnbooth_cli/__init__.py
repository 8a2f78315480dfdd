"""attnbooth: AttnDreamBooth personalisation of Stable Diffusion.

Three calls do what the three main commands do, and nothing heavy is imported before one of them is used:

    import attnbooth_cli as attnbooth

    attnbooth.init("my_cat", images=["photos/cat"], category="cat", model="tiny")
    attnbooth.train("my_cat", fast=True)
    pictures = attnbooth.generate("my_cat", ["a photo of a {} on a beach"], n=4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "generate", "init", "train"]

if TYPE_CHECKING:
    from attnbooth_cli.engine.generation import generate
    from attnbooth_cli.engine.initialisation import init
    from attnbooth_cli.engine.training import train

_WHERE = {"init": "initialisation", "train": "training", "generate": "generation"}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"attnbooth_cli.engine.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
