"""Counts on paper are those that others have counted."""

from __future__ import annotations

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from attnbooth_cli.engine import footprint
from benchmarks.speed import on_paper
from benchmarks.speed.layouts import LAYOUTS, unet_of


def test_operations_of_a_sample_on_stable_diffusion_2() -> None:
    """In TFLOP: a step of each stage as a prototype counted it, VAE encode, text encoder."""
    with FakeTensorMode():
        shape = unet_of(LAYOUTS["sd21"]).config
    for stage, known in zip(on_paper.schedules()["default"], (1.67, 1.70, 2.41), strict=True):
        walked = footprint.parts(shape, 64)
        own = footprint.step_operations(walked, stage) / stage.batch_size / 1e12
        assert own == pytest.approx(known, rel=0.04), stage.name
    encode, text = on_paper.encoders()
    assert encode / 1e12 == pytest.approx(1.12, rel=0.04)
    assert text / 1e12 == pytest.approx(0.05, abs=0.01)


def test_a_schedule_is_the_sum_of_its_stages() -> None:
    default, fast = on_paper.schedules().values()
    shape = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn", "block_out_channels": [32, 64], "layers_per_block": 1,
        "cross_attention_dim": 32, "in_channels": 4, "out_channels": 4, "attention_head_dim": 8,
    }  # fmt: skip
    whole = on_paper.counted(default, shape, 3.0, 2.0)
    parts = [on_paper.counted((stage,), shape, 3.0, 2.0) for stage in default]
    assert whole.unet == sum(part.unet for part in parts)
    assert whole.moved == sum(part.moved for part in parts)
    assert whole.encodes == 3.0 * (60 + 100 + 500) * 8
    assert on_paper.counted(fast, shape, 3.0, 2.0).texts == 2.0 * ((60 + 100) * 8 + 200 * 4)
    assert parts[0].moved == 0
