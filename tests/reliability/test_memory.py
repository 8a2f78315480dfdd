"""Out of memory: a step is done again in smaller parts, with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.conftest import Cli, weights

FOUR = tuple(
    f"--set=train.{stage}.{key}={value}"
    for stage in ("embedding", "attention", "unet")
    for key, value in {"steps": 2, "batch_size": 4}.items()
)


@contextmanager
def room_for(samples: int, exception: type[Exception] = torch.OutOfMemoryError) -> Iterator[list[int]]:
    """Lets the U-Net fail on more samples at once, with gradients; yields the sizes of what came through."""
    through: list[int] = []
    original = UNet2DConditionModel.forward

    def forward(self: Any, sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() and len(sample) > samples:
            raise exception("CUDA out of memory. Tried to allocate 20.00 GiB")
        if torch.is_grad_enabled():
            through.append(len(sample))
        return original(self, sample, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", forward)
        yield through


def test_a_step_that_does_not_fit_is_done_in_halves(cli: Cli, project: Path, tmp_path: Path) -> None:
    with room_for(2) as through:
        done = cli("train", project, *FOUR)
    assert done.code == 0
    assert done.err.count("out of memory: 2 samples at a time from here on") == 1  # later stages know
    assert set(through) == {2}
    told_so = next(project.glob("runs/*/events.jsonl")).read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(line)["event"] == "warning" for line in told_so) == 1

    other = tmp_path / "halves"
    assert cli("init", other, "--example", "--token", "<toadstool>").code == 0
    assert cli("train", other, *FOUR, "--set=train.micro_batch_size=2").code == 0
    assert weights(project) == weights(other)


def test_some_devices_have_no_exception_of_their_own_for_it(cli: Cli, project: Path) -> None:
    with room_for(2, RuntimeError) as through:
        done = cli("train", project, *FOUR, "--until", "embedding")
    assert done.code == 0
    assert "out of memory: 2 samples at a time from here on" in done.err
    assert set(through) == {2}


def test_where_not_even_one_sample_fits_the_run_ends_with_a_hint(cli: Cli, project: Path) -> None:
    with room_for(0):
        done = cli("train", project, *FOUR)
    assert done.code == 6
    assert "2 samples at a time" in done.err
    assert "one sample at a time" in done.err
    assert done.err.splitlines()[-2] == "error: out of memory"
    assert "Traceback" not in done.err
