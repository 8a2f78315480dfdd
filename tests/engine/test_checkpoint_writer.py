"""Checkpoints that are written beside the steps, as on an accelerator, are those that would be written before them."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attnbooth_cli.engine import checkpoint, checkpoint_writer, execution
from attnbooth_cli.engine.checkpoint_writer import CheckpointWriter
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.training import resume, train
from attnbooth_cli.errors import ResourceError, StoppedError
from attnbooth_cli.events import Checkpointed, Event
from tests.engine.conftest import EXAMPLE
from tests.engine.test_resume import OPTIONS, STEPS, concept_tensors, stopping_after

EVERY_STEP = replace(OPTIONS, settings=(*OPTIONS.settings, "train.checkpoint_every=1"))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds every write up until it is set."""
    gate, save = threading.Event(), checkpoint.save

    def held_up(*arguments: Any, **named: Any) -> checkpoint.Checkpoint:
        assert gate.wait(60)
        return save(*arguments, **named)

    monkeypatch.setattr(checkpoint, "save", held_up)
    return gate


def test_steps_go_on_and_do_not_change_what_is_written(tmp_path: Path, gate: threading.Event) -> None:
    writer, weight = CheckpointWriter(tmp_path, behind=True), torch.zeros(1000)
    assert writer.save("unet", 1, {"weights": {"w": weight}, "optimizer": {}}, None) == []
    assert writer.written() == []
    weight += 1
    gate.set()
    (saved,) = writer.written(wait=True)
    assert torch.equal(checkpoint.read(saved.folder).tensors("weights")["w"], torch.zeros(1000))
    assert writer.written(wait=True) == []
    writer.close()


def test_one_is_written_at_a_time_and_each_is_told_of_once(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, behind=True)
    told = [its.step for step in range(1, 5) for its in writer.save("unet", step, {"weights": {}}, None)]
    assert [*told, *(its.step for its in writer.written(wait=True))] == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unet-000003", "unet-000004"]


def test_what_cannot_be_written_is_said_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> checkpoint.Checkpoint:
        raise ResourceError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    writer = CheckpointWriter(tmp_path, behind=True)
    assert writer.save("unet", 1, {"weights": {}}, None) == []
    with pytest.raises(ResourceError):
        writer.save("unet", 2, {"weights": {}}, None)


def test_without_room_for_a_copy_it_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "free_host_memory", lambda: 1000)
    writer = CheckpointWriter(tmp_path, behind=True)
    assert [its.step for its in writer.save("unet", 1, {"weights": {"w": torch.zeros(1000)}}, None)] == [1]


def test_a_run_has_the_same_bits_stopped_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits until its state is durable."""
    init(tmp_path / "p", images=[EXAMPLE], category="cat", model="tiny")
    plain, behind = (Path(shutil.copytree(tmp_path / "p", tmp_path / name)) for name in ("plain", "behind"))
    train(plain, options=EVERY_STEP, report=False)
    monkeypatch.setattr(execution, "writes_behind", lambda device: True)
    events: list[Event] = []
    count, should_stop = stopping_after(STEPS + 1)

    def emit(event: Event) -> None:
        count(event)
        events.append(event)

    with pytest.raises(StoppedError):
        train(behind, options=EVERY_STEP, emit=emit, should_stop=should_stop)
    saved = [(event.stage, event.step) for event in events if isinstance(event, Checkpointed)]
    assert saved[-1] == ("attention", 1)
    assert len(saved) == len(set(saved))
    resume(behind, report=False)
    expected, found = concept_tensors(plain), concept_tensors(behind)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
