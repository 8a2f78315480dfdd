"""What the benchmark of training steps compares is one and the same objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attnbooth_cli.engine.loop import Progress, run_stage
from attnbooth_cli.engine.methods import AdamW
from benchmarks.speed import training


@pytest.mark.parametrize("stage", ["embedding", "attention", "unet"])
def test_all_ways_compute_the_same_losses(stage: str) -> None:
    bench = training.prepared("tiny", stage, batch=2, pool=0)
    losses: dict[str, list[float]] = {way: [] for way in ("ours", "reference", "plain")}
    diffusion = []
    others = training.other_ways(bench)

    def after_step(progress: Progress) -> None:
        losses["ours"].append(progress.losses.diffusion + progress.losses.attention)
        diffusion.append(progress.losses.diffusion)
        for way in ("reference", "plain"):
            losses[way].append(others[way](progress.step - 1))

    still = replace(bench.stage, steps=2, learning_rate=0.0)
    run_stage(still, bench.subject, bench.source, bench.accelerator, AdamW(weight_decay=0.0), after_step=after_step)
    assert losses["reference"] == pytest.approx(losses["ours"], rel=1e-5)
    assert losses["plain"] == pytest.approx(diffusion, rel=1e-5)
    assert losses["ours"][0] != losses["ours"][1]


def test_the_references_way_keeps_every_layers_maps() -> None:
    bench = training.prepared("tiny", "unet", batch=1, pool=0)
    unet: Any = bench.unet
    with training.materialised(unet, [1, 2]) as maps, torch.no_grad():
        latents = torch.zeros(1, unet.config.in_channels, 8, 8)
        unet(latents, torch.tensor(3), torch.zeros(1, 77, unet.config.cross_attention_dim))
    assert maps.keys() == unet.attn_processors.keys()
    assert all(type(its) is not training.Materialising for its in unet.attn_processors.values())


def test_the_summary_compares_neighbours() -> None:
    seconds = {"ours": [1.0, 2.0, 3.0], "reference": [2.0, 2.0, 12.0], "plain": [1.0] * 3, "unet": [1.0] * 3}
    found = training.summary(seconds)
    assert found["ours / reference"] == {"least": 0.25, "median": 0.5, "most": 1.0}
    assert found["seconds"]["ours"] == 2.0
