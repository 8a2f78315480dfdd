"""What recording costs: python -m benchmarks.recording [--layout sd15|sd21] [--steps N] [--pairs N]

Pictures of 512 pixels by a U-Net of a real layout with random weights, float32: denoising steps with guidance, plain
and with every word of a prompt of ten recorded, in turn in one process. Prints the ratio of times (median of pairs)
and the difference of peak memory. The text encoder and the VAE, which recording leaves alone, are not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

from attnbooth_cli.engine.attention import ReadingProcessor, processors
from attnbooth_cli.engine.maps import MapRecorder, Selection
from attnbooth_cli.engine.words import Word
from benchmarks.memory import forget_peak, peak_bytes, resident_bytes
from benchmarks.speed.layouts import LAYOUTS, TOKENS, unet_of

WORDS = 10


def words() -> tuple[Word, ...]:
    """Ten words, the fifth and sixth [V] and its category, and the buckets."""
    kinds = {4: "placeholder", 5: "category"}
    spoken = [Word(f"word {k}", (k + 1,), kinds.get(k, "word")) for k in range(WORDS)]  # type: ignore[arg-type]
    padding = tuple(range(WORDS + 2, TOKENS))
    buckets = (Word("[start]", (0,), "bucket"), Word("[end]", (WORDS + 1,), "bucket"))
    return (*spoken, *buckets, Word("[padding]", padding, "bucket"))


@torch.no_grad()
def denoise(unet: Any, steps: int, recorder: MapRecorder | None) -> Tensor:
    """Runs `steps` steps with guidance on one picture's latents; the last prediction."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 64, 64, generator=generator)
    told = torch.randn(2, TOKENS, unet.config.cross_attention_dim, generator=generator)
    recording = (
        processors(unet, lambda name: ReadingProcessor(name, recorder.read)) if recorder else contextlib.nullcontext()
    )
    with recording:
        for step in range(steps):
            unconditional, conditional = unet(latents.expand(2, -1, -1, -1), 900 - step, told).sample
            latents = latents - 0.02 * (unconditional + 7.5 * (conditional - unconditional))
            if recorder:
                recorder.next_step()
    return latents


def measured(unet: Any, steps: int, record: bool) -> tuple[float, float, Tensor]:
    """Seconds, and megabytes of memory at its peak above before."""
    recorder = MapRecorder(words(), (64, 64), Selection(), True, pair=((5,), 6)) if record else None
    before = resident_bytes()
    forget_peak()
    began = time.perf_counter()
    result = denoise(unet, steps, recorder)
    seconds = time.perf_counter() - began
    if recorder:
        assert recorder.recording().steps.shape == (1, steps, WORDS + 3, 64, 64)
    return seconds, (peak_bytes() - before) / 1e6, result


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default="sd21")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    unet = unet_of(LAYOUTS[chosen.layout])
    denoise(unet, 1, None)
    ratios, memory = [], []
    for _ in range(chosen.pairs):
        plain, plain_peak, one = measured(unet, chosen.steps, record=False)
        recorded, recorded_peak, other = measured(unet, chosen.steps, record=True)
        assert torch.equal(one, other)
        ratios.append(recorded / plain)
        memory.append(recorded_peak - plain_peak)
        print(f"plain {plain:.1f} s, recorded {recorded:.1f} s, {memory[-1]:+.0f} MB", file=sys.stderr, flush=True)
    found = {
        "layout": chosen.layout,
        "time ratio": round(statistics.median(ratios), 3),
        "time ratios": [round(ratio, 3) for ratio in ratios],
        "peak MB more": round(statistics.median(memory)),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
