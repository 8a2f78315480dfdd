"""What a run did, read from its events.jsonl: however often it was stopped, each step and sample once.

No torch here. A line that a crash cut off is passed over; and a step that was done again after one counts as it was
done the last time, because that is what the result was made from.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from attnbooth_cli.engine.methods import STAGE_NAMES
from attnbooth_cli.project.documents import read_text

ACTIVITIES = {
    "step": "training steps",
    "checkpoint": "saving states",
    "sample": "sample pictures",
    "snapshot": "keeping snapshots",
}
"""An event's name -> what the time before it went into."""

_LATEST = 1e12
"""Seconds since 1970 that no clock has shown yet."""
_ANY_TIME = ("warning", "progress")
"""Events that may also come before a `start`."""


@dataclass(frozen=True)
class Step:
    """One step of a stage; see `events.Stepped`. The regulariser's terms are None where an older version wrote it."""

    stage: str
    step: int
    diffusion: float
    attention: float
    attention_mean: float | None
    attention_variance: float | None
    prior: float
    seconds: float


@dataclass(frozen=True)
class Sample:
    """A picture of the concept as it was after a step; `name` is its file's, among the project's samples."""

    stage: str
    step: int
    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class StageTime:
    """What a stage's steps took; `per_step` is their median."""

    stage: str
    steps: int
    seconds: float
    per_step: float


@dataclass(frozen=True)
class History:
    """A run from its first start to now.

    Attributes:
        steps, samples: In the order of training, each once.
        starts: How often it was begun or continued.
        device, precision: Where it was computed, the last time.
        spent: Seconds by activity, repeated steps included.
        seconds: All of them.
    """

    steps: tuple[Step, ...]
    samples: tuple[Sample, ...]
    starts: int
    device: str | None
    precision: str | None
    spent: dict[str, float]
    seconds: float

    def of_stage(self, stage: str) -> tuple[Step, ...]:
        """A stage's steps."""
        return tuple(step for step in self.steps if step.stage == stage)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have steps, in order."""
        return tuple(dict.fromkeys(step.stage for step in self.steps))

    @property
    def times(self) -> tuple[StageTime, ...]:
        """What each stage took."""
        found = ((stage, [step.seconds for step in self.of_stage(stage)]) for stage in self.stages)
        return tuple(
            StageTime(stage, len(seconds), sum(seconds), statistics.median(seconds)) for stage, seconds in found
        )


def read_history(path: Path, seconds_now: float) -> History:
    """Reads a run's events.

    Args:
        seconds_now: How long the run has been going on since it was last begun or continued.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    events = list(_events(read_text(path, errors="replace").splitlines()))
    steps: dict[tuple[int, int], Step] = {}
    samples: dict[tuple[int, int], Sample] = {}
    for event in events:
        try:
            place = (STAGE_NAMES.index(event["stage"]), int(event["step"])) if "step" in event else (0, 0)
            if event["event"] == "step":
                steps[place] = _step(event)
            elif event["event"] == "sample":
                samples[place] = _sample(event)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    starts = [event for event in events if event["event"] == "start"]
    spent, seconds = _spent(events, seconds_now)
    return History(
        steps=tuple(steps[place] for place in sorted(steps)),
        samples=tuple(samples[place] for place in sorted(samples)),
        starts=len(starts),
        device=str(starts[-1].get("device")) if starts else None,
        precision=str(starts[-1].get("precision")) if starts else None,
        spent=spent,
        seconds=seconds,
    )


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(event, dict)
            and isinstance(event.get("event"), str)
            and isinstance(event.get("time"), int | float)
            and abs(event["time"]) < _LATEST
        ):
            yield event


def _number(value: Any) -> float:
    """A number that can be added up and drawn.

    Raises:
        ValueError, TypeError, OverflowError: it is none; training stops before it would log such a loss.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no number to draw")
    return number


def _step(event: dict[str, Any]) -> Step:
    of_means, of_variances = (event.get(f"attention_{term}_loss") for term in ("mean", "variance"))
    return Step(
        stage=event["stage"],
        step=int(event["step"]),
        diffusion=_number(event["diffusion_loss"]),
        attention=_number(event["attention_loss"]),
        attention_mean=None if of_means is None else _number(of_means),
        attention_variance=None if of_variances is None else _number(of_variances),
        prior=_number(event.get("prior_loss", 0.0)),
        seconds=_number(event["seconds"]),
    )


def _sample(event: dict[str, Any]) -> Sample:
    name = Path(str(event["path"])).name  # the folder it was in may have moved since
    return Sample(event["stage"], int(event["step"]), name, str(event["prompt"]), int(event["seed"]))


def _spent(events: Sequence[dict[str, Any]], seconds_now: float) -> tuple[dict[str, float], float]:
    """Seconds by activity, and in all.

    Time is given to the event it ended with. A start that never came to its end is known from its first event to its
    last only; one that did has said its seconds, in which what no event tells of is included.
    """
    spent = dict.fromkeys(ACTIVITIES.values(), 0.0)
    sessions = list(_sessions(events))
    seconds = 0.0
    for number, session in enumerate(sessions, start=1):
        for before, event in pairwise(session):
            if event["event"] in ACTIVITIES:
                spent[ACTIVITIES[event["event"]]] += max(0.0, event["time"] - before["time"])
        said = _said(session[-1]) if session[-1]["event"] == "done" else None
        if number == len(sessions):
            seconds += seconds_now
        else:
            seconds += said if said is not None else max(0.0, session[-1]["time"] - session[0]["time"])
    return spent, seconds


def _said(done: dict[str, Any]) -> float | None:
    """The seconds that an end says it took."""
    try:
        return _number(done["seconds"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _sessions(events: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The events of each time the run was begun or continued, from its `start` to its end."""
    session: list[dict[str, Any]] = []
    for event in events:
        begins = event["event"] == "start"
        if session and (begins or session[-1]["event"] == "done"):
            yield session
            session = []
        if begins or (session and event["event"] not in _ANY_TIME):
            session.append(event)
    if session:
        yield session
