"""What a training changes of its method's own schedule: schedules of ours, and probes of why a claim did not hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attnbooth_cli.engine.methods import ATTNDREAMBOOTH

Changes = Mapping[str, Mapping[str, Any]]
"""Stage (or "" for what is no stage's, "concept" for the concept's own) -> setting -> value, learning rates before they
are multiplied."""
FAST: Changes = {str(name): values for name, values in ATTNDREAMBOOTH.presets["fast"].items()}


def _and(changes: Changes, **more: Mapping[str, Any]) -> Changes:
    """Fast mode with further changes; `all_` holds what is no stage's."""
    named = {"" if name == "all_" else name: its for name, its in more.items()}
    return {name: {**changes.get(name, {}), **named.get(name, {})} for name in {**changes, **named}}


VARIANTS: Mapping[str, Changes] = {
    "": {},
    "upright": {"": {"augmentation": "upright"}},
    "fast": FAST,
    "fast-upright": _and(FAST, all_={"augmentation": "upright"}),
    "fast-pool": _and(FAST, all_={"augmentation_pool": 64}),
    "fast-pool-256": _and(FAST, all_={"augmentation_pool": 256}),
    "fast-min-snr": _and(FAST, embedding={"snr_gamma": 5.0}, attention={"snr_gamma": 5.0}, unet={"snr_gamma": 5.0}),
    "fast-half-1": _and(FAST, embedding={"steps": 30, "learning_rate": 2e-3}),
    "fast-half-2": _and(FAST, attention={"steps": 50, "learning_rate": 4e-5}),
    "fast-half-3": _and(FAST, unet={"steps": 100, "learning_rate": 2e-5}),
    "fast-half-all": _and(
        FAST,
        embedding={"steps": 30, "learning_rate": 2e-3},
        attention={"steps": 50, "learning_rate": 4e-5},
        unet={"steps": 100, "learning_rate": 2e-5},
    ),
    "fast-small-batches": _and(
        FAST, embedding={"batch_size": 4}, attention={"batch_size": 4}, unet={"steps": 400, "batch_size": 2}
    ),
    "fast-large-batches": _and(FAST, unet={"steps": 100, "batch_size": 8, "learning_rate": 2e-5}),
    # What the above suggested: upright pictures leave room to train less.
    "fast-upright-gentle": _and(FAST, all_={"augmentation": "upright"}, unet={"learning_rate": 7e-6}),
    "fast-upright-short": _and(
        FAST, all_={"augmentation": "upright"}, attention={"steps": 50, "learning_rate": 4e-5}, unet={"steps": 140}
    ),
    "fast-upright-shorter": _and(
        FAST, all_={"augmentation": "upright"}, attention={"steps": 50, "learning_rate": 4e-5}, unet={"steps": 100}
    ),
}
"""Our method's schedules: what changes against the default one. The second look at fast mode compares them; "upright"
pictures are not turned in augmentation, and have no black corners."""

CONTENDERS = ("fast", "fast-upright-shorter")
"""The paper's fast schedule, and the cheapest one that scored more of both numbers on the first concepts."""

PROBES: Mapping[str, Changes] = {
    "4-vectors": {"concept": {"vectors": 4}},
    "weak-unet": {"unet": {"learning_rate": 2e-7}},
    "strong-unet": {"unet": {"learning_rate": 6e-5}},
    "weak-embedding": {"embedding": {"learning_rate": 1e-3 / 30}},
    "fast-same-way": _and(FAST, unet={"learning_rate": 5e-6}),
}
"""What might be why a claim of the paper did not hold. The rates are such that, multiplied by what was best for the
method, the U-Net's of "weak-unet" is the published one (x 10), that of "strong-unet" is TI + DreamBooth's (x 300),
and the embedding's of "weak-embedding" is ours. In "fast-same-way" steps times rate of stage 3 are the default's."""

PROBED: Mapping[str, tuple[str, ...]] = {
    "4-vectors": ("textual-inversion",),
    "weak-unet": (
        ATTNDREAMBOOTH.name,
        f"{ATTNDREAMBOOTH.name}-without-embedding",
        f"{ATTNDREAMBOOTH.name}-without-attention",
        f"{ATTNDREAMBOOTH.name}-without-regulariser",
    ),
    "strong-unet": (ATTNDREAMBOOTH.name,),
    "weak-embedding": ("ti-db",),
    "fast": (ATTNDREAMBOOTH.name,),
    "fast-same-way": (ATTNDREAMBOOTH.name,),
}
"""The methods on which each is tried."""

SUGGESTED: Mapping[str, tuple[str, ...]] = {
    "upright": (ATTNDREAMBOOTH.name, "ti-db"),
}
"""What was seen on tuning concepts and is therefore tried on those of the table: pictures without the black corners
that cost our method identity, also for its rival, which has the same corners."""


def changes_of(variant: str) -> Changes:
    """What a variant or probe changes."""
    return PROBES[variant] if variant in PROBES else VARIANTS[variant]
