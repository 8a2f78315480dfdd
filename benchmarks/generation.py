"""What `generate` costs beside plain diffusers: python -m benchmarks.generation [--layout tiny|sd15-narrow] [--pairs N]

The same pictures by `attnbooth_cli.engine.sampling` and by diffusers' `StableDiffusionPipeline` called with the same
prompts, seeds, scheduler and steps, in turn in one process: the ratio of times, median of pairs, by the clock and in
processor time, which other programs disturb less. On the way both must make the same pictures (to 1/255), and the
samples that go through the text encoder are counted.

`tiny` is the bundled model; `sd15-narrow` has the bundled text encoder and VAE and a U-Net in the layout of Stable
Diffusion 1.5, a fifth as wide, with random weights, on 32x32 latents. float32. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnbooth_cli.engine.base_models import resolve
from attnbooth_cli.engine.families import FAMILIES, Components, load_components
from attnbooth_cli.engine.sampling import Request, SamplingSettings, make_scheduler, sample

WORDS = ("cat", "dog", "car", "fish")
"""One prompt each."""
EACH = 4
"""Pictures of a prompt."""
BATCH = 8

Pictures = NDArray[np.int64]


def model(layout: str) -> tuple[Components, int]:
    """A base model and the size of its pictures in pixels."""
    components = load_components(resolve("tiny"))
    if layout == "tiny":
        return components, 64
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    components.unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=components.unet.config.cross_attention_dim,
        attention_head_dim=8,
        in_channels=components.unet.config.in_channels,
        out_channels=components.unet.config.out_channels,
    )
    components.unet.requires_grad_(False).eval()
    return components, 32 * components.pixels_per_latent


def ours(components: Components, requests: Sequence[Request], settings: SamplingSettings) -> Pictures:
    """By the code that `generate` and `eval` use."""
    return np.stack([np.asarray(picture).astype(int) for picture in sample(components, requests, settings)])


def plain(components: Components, requests: Sequence[Request], settings: SamplingSettings) -> Pictures:
    """By diffusers' pipeline, as its documentation calls it, in batches of the same size."""
    scheduler = make_scheduler(components, settings.scheduler)
    pipeline = FAMILIES[components.family].pipeline(components, scheduler)
    made: list[Any] = []
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        made += pipeline(
            [request.prompt for request in batch],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            width=settings.width,
            height=settings.height,
            generator=[torch.Generator().manual_seed(request.seed) for request in batch],
        ).images
    return np.stack([np.asarray(picture).astype(int) for picture in made])


def timed(
    make: Callable[..., Pictures], components: Components, requests: Sequence[Request], settings: SamplingSettings
) -> tuple[float, float, int, Pictures]:
    """Seconds, seconds of processor time, samples through the text encoder, and the pictures."""
    encoder = components.text_encoders[0].model
    samples: list[int] = []
    forward = encoder.register_forward_hook(lambda _module, _arguments, out: samples.append(len(out[0])))
    began, used = time.perf_counter(), time.process_time()
    made = make(components, requests, settings)
    taken, used = time.perf_counter() - began, time.process_time() - used
    forward.remove()
    return taken, used, sum(samples), made


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=("tiny", "sd15-narrow"), default="tiny")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    chosen = parser.parse_args()
    components, pixels = model(chosen.layout)
    settings = SamplingSettings(chosen.steps, 7.5, pixels, pixels)
    requests = [Request(f"a photo of a {word}", seed) for word in WORDS for seed in range(EACH)]
    timed(ours, components, requests[:BATCH], SamplingSettings(1, 7.5, pixels, pixels))
    timed(plain, components, requests[:BATCH], SamplingSettings(1, 7.5, pixels, pixels))
    ratios, of_processor, furthest, encoded = [], [], 0, (0, 0)
    for pair in range(chosen.pairs):
        order = (ours, plain) if pair % 2 else (plain, ours)
        found = {make: timed(make, components, requests, settings) for make in order}
        ratios.append(found[ours][0] / found[plain][0])
        of_processor.append(found[ours][1] / found[plain][1])
        furthest = max(furthest, int(np.abs(found[ours][3] - found[plain][3]).max()))
        encoded = found[ours][2], found[plain][2]
        print(f"ours {found[ours][0]:.1f} s, plain {found[plain][0]:.1f} s", file=sys.stderr, flush=True)
    document = {
        "layout": chosen.layout,
        "pictures": len(requests),
        "steps": chosen.steps,
        "time ratio": round(statistics.median(ratios), 3),
        "time ratios": [round(ratio, 3) for ratio in ratios],
        "processor time ratio": round(statistics.median(of_processor), 3),
        "processor time ratios": [round(ratio, 3) for ratio in of_processor],
        "furthest pixel": furthest,
        "texts encoded": {"ours": encoded[0], "plain": encoded[1]},
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
