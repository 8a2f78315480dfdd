"""What tells the U-Net of [V] where that is more than an embedding: NeTI's network, ViCo's picture.

Such a `Prompting` is made when training begins, put into `Components.prompting`, works while its `at_work` block is
open, and is stored in `concept/` beside the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from attnbooth_cli.engine import neti, vico
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.methods import AdapterName
from attnbooth_cli.engine.tokens import Placeholder


class Prompting(Protocol):
    """Something that acts on every call of the U-Net.

    Attributes:
        module: What is trained and stored.
        parts: How many pictures the U-Net sees for each sample, the sample first.
        regularisation: What the last call adds to the objective, a sum over its samples; None for nothing.
    """

    module: Any
    parts: int
    regularisation: Tensor | None

    def at_work(self, components: Any) -> AbstractContextManager[None]:
        """Acts on the U-Net's calls during the block."""

    def tell(self, components: Any, texts: Sequence[str], *, guided: bool = False) -> None:
        """Sets the prompts of the next calls' samples, [V] spelt out, for pictures.

        Args:
            guided: The first half of the texts are what guidance leads away from, in the same order as the second.
        """

    def draw(self, source: LatentSource, stage: str, step: int, indices: Sequence[int], batch_size: int) -> None:
        """After `tell`: what is random about the samples of a training step."""


@dataclass(frozen=True)
class Kind:
    """A kind of prompting.

    Attributes:
        file: Where `concept/` keeps its tensors.
        begin: (components, placeholder, source of training pictures) -> untrained, on the U-Net's device.
        restore: (components, placeholder, stored tensors) -> trained, on the CPU.
    """

    file: str
    begin: Callable[[Any, Placeholder, LatentSource], Prompting]
    restore: Callable[[Any, Placeholder, Mapping[str, Tensor]], Prompting]


KINDS: dict[AdapterName, Kind] = {
    "mapper": Kind("neti_mapper.safetensors", neti.begin, neti.restore),
    "image-attention": Kind("vico_attention.safetensors", vico.begin, vico.restore),
}


def frozen(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors as they are stored: float32."""
    return {name: tensor.detach().float() for name, tensor in module.state_dict().items()}
