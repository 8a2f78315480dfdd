"""What a running engine tells the outside, as data. The command line draws bars or prints JSON from these.

Standard library only. `name` is the event's name in `--json` streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Started:
    """A run begins or continues.

    Attributes:
        stages: (name, steps) of every stage that is still to do or under way.
        estimated_seconds: From one measured trial step; None when it was not measured.
        resumed_from: "stage step" of the checkpoint a continued run starts from.
    """

    name: ClassVar[str] = "start"
    run: str
    method: str
    stages: tuple[tuple[str, int], ...]
    pictures: int
    token: str
    category: str
    base_model: str
    resolution: int
    device: str
    precision: str
    estimated_seconds: float | None
    resumed_from: str | None
    smoke: bool


@dataclass(frozen=True)
class StageStarted:
    """A stage begins at `step` (0 unless resumed)."""

    name: ClassVar[str] = "stage"
    stage: str
    step: int
    steps: int
    status: str = "started"


@dataclass(frozen=True)
class StageFinished:
    """A stage is complete and saved."""

    name: ClassVar[str] = "stage"
    stage: str
    step: int
    steps: int
    seconds: float
    status: str = "finished"


@dataclass(frozen=True)
class Stepped:
    """One optimiser step is done; the losses are those it was computed from, each with its weight.

    Attributes:
        attention_mean_loss, attention_variance_loss: The regulariser's two terms. They add up to `attention_loss`, but
            for what a method adds to that beside the regulariser (ViCo, CoRe).
    """

    name: ClassVar[str] = "step"
    stage: str
    step: int
    steps: int
    diffusion_loss: float
    attention_loss: float
    seconds: float
    prior_loss: float = 0.0
    attention_mean_loss: float = 0.0
    attention_variance_loss: float = 0.0


@dataclass(frozen=True)
class Checkpointed:
    """A resumable state is durable on disk."""

    name: ClassVar[str] = "checkpoint"
    stage: str
    step: int
    path: str


@dataclass(frozen=True)
class Snapshotted:
    """The concept as it is at this step was kept in the folder `path`."""

    name: ClassVar[str] = "snapshot"
    stage: str
    step: int
    path: str


@dataclass(frozen=True)
class Sampled:
    """A picture was made from the current state."""

    name: ClassVar[str] = "sample"
    stage: str
    step: int
    path: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Finished:
    """The run is complete.

    Attributes:
        concept: Where the result is; None of a smoke test that found a real concept there.
        nothing_to_do: The concept was finished before; nothing was computed.
        remaining: Stages the plan has beside those that are done (after `--until`).
        report: The page about the run, if there is one.
    """

    name: ClassVar[str] = "done"
    run: str
    concept: str | None
    stages: tuple[str, ...]
    seconds: float
    samples: tuple[str, ...] = ()
    nothing_to_do: bool = False
    smoke: bool = False
    remaining: tuple[str, ...] = ()
    report: str | None = None


@dataclass(frozen=True)
class Warned:
    """Something the person should know; not part of the JSON stream, it goes to stderr."""

    name: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class Advanced:
    """Generation or evaluation made `done` of `total` pictures."""

    name: ClassVar[str] = "progress"
    done: int
    total: int
    what: str = "pictures"


Event = (
    Started
    | StageStarted
    | StageFinished
    | Stepped
    | Checkpointed
    | Snapshotted
    | Sampled
    | Finished
    | Warned
    | Advanced
)


Emit = Callable[[Event], None]
"""How the engine reports."""


def ignore(event: Event) -> None:
    """Reports to nobody."""
