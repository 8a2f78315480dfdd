"""What does not fit is refused before the work begins, with numbers."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from attnbooth_cli.engine import machine, requirements
from attnbooth_cli.engine.base_models import bundled_folder
from attnbooth_cli.engine.preparation import TrainOptions, prepare
from tests.conftest import SHORT, Cli, weights

Usage = namedtuple("Usage", "total used free")


def test_too_little_memory_is_refused_with_numbers(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "free_memory", lambda device: 20_000_000)
    done = cli("train", project, *SHORT)
    assert done.code == 6
    assert "state of stage unet alone needs 0.06 GB of memory on cpu, and 0.02 GB are free" in done.err  # 6.9 M weights
    assert "--method lora" in done.err
    assert not (project / "concept").exists()
    monkeypatch.setattr(requirements, "free_memory", lambda device: None)
    assert cli("train", project, *SHORT, "-q").code == 0


def test_little_memory_suffices_where_little_is_trained(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "free_memory", lambda device: 20_000_000)
    assert cli("train", project, "--method", "textual-inversion", "--set=train.embedding.steps=1", "-q").code == 0


def test_the_hint_where_memory_is_too_little_helps(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "free_memory", lambda device: 20_000_000)
    assert "--until attention" in cli("train", project, *SHORT).err
    assert cli("train", project, *SHORT, "--until", "attention", "-q").code == 0


def test_too_little_disk_is_refused_with_numbers(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 50_000_000))
    done = cli("train", project, *SHORT)
    assert done.code == 6
    assert "need 0." in done.err
    assert "and 0.05 GB are free" in done.err
    assert not (project / "concept").exists()


def test_the_memory_asked_for_is_what_the_optimizer_comes_to_hold(interrupted: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(bundled_folder() / "unet")
    plan = prepare(interrupted, TrainOptions()).plan
    counts = {stage.name: requirements.trained_weights(stage, unet) for stage in plan.stages}
    held = 0
    for part in ("weights", "optimizer"):
        path = interrupted / "runs" / "001-attndreambooth" / "checkpoints" / "attention-000005" / f"{part}.safetensors"
        with safe_open(path, "pt") as file:
            held += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert counts["attention"] * 12 == pytest.approx(held, rel=1e-3)  # beside the moments: a step a tensor
    assert counts["unet"] == unet.num_parameters()
    assert counts["embedding"] == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_is_a_limit(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    for name, text in zip((*names, "memory.stat"), ("1000\n", "600\n", "anon 500\ninactive_file 100\n"), strict=True):
        (folder / name).write_text(text)
    assert machine.container_memory(tmp_path) == 500
    for left in (500, 0):
        monkeypatch.setattr(machine, "container_memory", lambda left=left: left)
        assert requirements.free_memory(torch.device("cpu")) == left


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert machine.container_memory(tmp_path) is None
    for name, text in (("memory.max", "max\n"), ("memory.current", "600\n"), ("memory.stat", "")):
        (tmp_path / name).write_text(text)
    assert machine.container_memory(tmp_path) is None


def test_deterministic_kernels_are_asked_for_during_training_only(
    cli: Cli, project: Path, trained_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbooth_cli.engine import execution

    run_stage, seen = execution.run_stage, []

    def observed(*arguments: Any, **options: Any) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        run_stage(*arguments, **options)

    monkeypatch.setattr(execution, "run_stage", observed)
    assert cli("train", project, *SHORT, "--deterministic", "--until", "attention", "-q").code == 0
    assert cli("train", project, *SHORT, "--no-deterministic", "-q").code == 0  # the same run: the CPU always is
    assert seen == [True, True, False]
    assert not torch.are_deterministic_algorithms_enabled()
    assert weights(project) == weights(trained_once)


def test_free_memory_is_less_after_it_is_taken() -> None:
    device = torch.device("cpu")
    before = requirements.free_memory(device)
    taken = torch.ones(250_000_000)
    after = requirements.free_memory(device)
    assert before is not None
    assert after is not None
    assert 0 < after < before - taken.nbytes / 2  # others may give some back meanwhile
    assert requirements.free_memory(torch.device("mps")) is None
