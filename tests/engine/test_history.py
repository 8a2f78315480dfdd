"""A run as its events tell it, whatever happened to it on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbooth_cli.engine.history import History, read_history


def start(time: float) -> dict[str, Any]:
    return {"time": time, "event": "start", "device": "cpu", "precision": "float32"}


def step(time: float, stage: str, number: int, loss: float = 1.0, **fields: float) -> dict[str, Any]:
    losses = {"diffusion_loss": loss, "attention_loss": 0.5, "seconds": 2.0, **fields}
    return {"time": time, "event": "step", "stage": stage, "step": number, "steps": 9, **losses}


def history(tmp_path: Path, *events: dict[str, Any] | str, now: float = 0.0) -> History:
    path = tmp_path / "events.jsonl"
    path.write_text("".join((its if isinstance(its, str) else json.dumps(its)) + "\n" for its in events))
    return read_history(path, now)


def test_a_step_that_was_done_again_counts_as_it_was_done_the_last_time(tmp_path: Path) -> None:
    found = history(
        tmp_path,
        start(0), step(1, "unet", 1, 0.1), step(2, "unet", 2, 0.2), step(3, "unet", 3, 0.3),
        start(9), step(10, "unet", 2, 0.25), step(11, "unet", 3, 0.35), step(12, "unet", 4, 0.45),
    )  # fmt: skip
    assert [(its.step, its.diffusion) for its in found.steps] == [(1, 0.1), (2, 0.25), (3, 0.35), (4, 0.45)]
    assert found.starts == 2
    assert [(its.stage, its.steps, its.per_step) for its in found.times] == [("unet", 4, 2.0)]


def test_stages_come_in_the_order_of_training(tmp_path: Path) -> None:
    """The first stage was damaged and done again after the second."""
    found = history(tmp_path, start(0), step(1, "attention", 1), start(2), step(3, "embedding", 1))
    assert found.stages == ("embedding", "attention")


def test_an_older_version_did_not_tell_the_terms_apart(tmp_path: Path) -> None:
    terms = {"attention_mean_loss": 0.3, "attention_variance_loss": 0.2}
    old, new = history(tmp_path, start(0), step(1, "unet", 1), step(2, "unet", 2, **terms)).steps
    assert (old.attention, old.attention_mean, old.attention_variance) == (0.5, None, None)
    assert (new.attention_mean, new.attention_variance) == (0.3, 0.2)


@pytest.mark.parametrize(
    "line",
    ['{"time": 1, "event": "st', "", "[]", "null", '{"event": "step"}', '{"time": 1, "event": "step", "step": "x"}',
     '{"time": 1, "event": "step", "stage": "other", "step": 1}'],
)  # fmt: skip
def test_what_a_crash_left_is_passed_over(tmp_path: Path, line: str) -> None:
    assert [its.step for its in history(tmp_path, start(0), line, step(2, "unet", 1)).steps] == [1]


def test_samples_are_known_by_name_once(tmp_path: Path) -> None:
    sample = {"time": 1, "event": "sample", "stage": "unet", "step": 2, "prompt": "a {}", "seed": 3}
    found = history(tmp_path, start(0), {**sample, "path": "old/samples/one.png"}, {**sample, "path": "/new/two.png"})
    assert [(its.name, its.prompt, its.seed) for its in found.samples] == [("two.png", "a {}", 3)]


def test_time_goes_to_what_it_ended_with_and_none_to_the_pause_between(tmp_path: Path) -> None:
    checkpoint = {"event": "checkpoint", "stage": "unet", "step": 1, "path": "p"}
    found = history(
        tmp_path,
        start(100), step(103, "unet", 1), {**checkpoint, "time": 104.5},
        {"time": 5000, "event": "warning", "message": "m"},
        start(5002), step(5004, "unet", 2), {"time": 5009, "event": "done", "seconds": 30.0},
        start(9000), step(9001, "unet", 3),
        now=20.0,
    )  # fmt: skip
    assert {name: seconds for name, seconds in found.spent.items() if seconds} == {
        "training steps": 6.0, "saving states": 1.5,
    }  # fmt: skip
    assert found.seconds == pytest.approx(4.5 + 30.0 + 20.0)
