"""Methods as data: what each stage trains, for how long, at which rate, under which regulariser.

A fast mode or an ablation is other values in these tables, never other code. Imports nothing heavy: the plan is built
from here before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

StageName = Literal["embedding", "attention", "unet"]
"""What a stage trains: the embedding rows of [V]; the cross-attention modules; the whole U-Net."""

STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)


@dataclass(frozen=True)
class Stage:
    """One stage of training (paper section 4.2; figures from the reference's training script).

    Attributes:
        name: What it trains.
        steps: Optimiser steps.
        learning_rate: Constant, no warm-up.
        batch_size: Pictures in one optimiser step, however they are split over micro-batches and processes.
        mean_weight: lambda_mu of the attention regulariser.
        variance_weight: lambda_sigma of the attention regulariser.
        enabled: Off for an ablation that leaves the stage out.
    """

    name: StageName
    steps: int
    learning_rate: float
    batch_size: int
    mean_weight: float
    variance_weight: float
    enabled: bool = True

    @property
    def regularised(self) -> bool:
        """Whether any term of the attention regulariser is active."""
        return self.mean_weight != 0 or self.variance_weight != 0


@dataclass(frozen=True)
class AdamW:
    """The optimiser's constants (reference script's defaults, used for every stage)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class Method:
    """A way to personalise: its stages in order, its presets, and the training prompt.

    Attributes:
        presets: Preset name -> stage name -> the values it changes.
        prompt: The training prompt; `{}` stands for `[V] C`.
        source: Where the values were read.
    """

    name: str
    stages: tuple[Stage, ...]
    presets: dict[str, dict[StageName, dict[str, float | int]]]
    prompt: str
    optimizer: AdamW
    source: str


ATTNDREAMBOOTH = Method(
    name="attndreambooth",
    stages=(
        Stage("embedding", steps=60, learning_rate=1e-3, batch_size=8, mean_weight=0.1, variance_weight=0.0),
        Stage("attention", steps=100, learning_rate=2e-5, batch_size=8, mean_weight=2.0, variance_weight=5.0),
        Stage("unet", steps=500, learning_rate=2e-6, batch_size=8, mean_weight=2.0, variance_weight=5.0),
    ),
    # Fast mode changes stage 3 alone; half the batch also halves the regulariser's pull, as in the reference.
    presets={"fast": {"unet": {"steps": 200, "learning_rate": 1e-5, "batch_size": 4}}},
    prompt="a photo of a {}",
    optimizer=AdamW(),
    source="AttnDreamBooth (Pang et al., NeurIPS 2024), the authors' released scripts",
)

METHODS: dict[str, Method] = {ATTNDREAMBOOTH.name: ATTNDREAMBOOTH}
