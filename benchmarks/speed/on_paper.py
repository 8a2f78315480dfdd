"""What the counts mean on hardware that is not here: python -m benchmarks.speed.on_paper

Counts the floating-point operations of AttnDreamBooth's schedules on Stable Diffusion 2.1 at 512 pixels (the U-Net from
its shape, `engine.footprint`; a VAE encode and the text encoder as PyTorch counts them, no number being computed), and
the bytes that optimizer steps move. Divided by what a GPU is published to do, times the share of it that a program
reaches, these are times; the share is an assumption, and so is that nothing else takes time. Prints Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from attnbooth_cli.engine import footprint
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH, Stage
from benchmarks.speed.layouts import LAYOUTS, RESOLUTION, TOKENS, components_of, unet_of

LAYOUT = "sd21"
OPTIMIZER_BYTES = 7 * footprint.FLOAT
"""Of a weight in a step of fused AdamW in float32: itself, gradient and moments read, all but the gradient written."""
SHARES = (0.3, 0.4, 0.5)
"""Of the published rate of matrix products that training is assumed to reach."""
GOALS = {"default": 120.0, "fast": 40.0}
"""Seconds that we want on an A100."""
PAPERS = {"default": 20 * 60.0, "fast": 6 * 60.0}
"""Seconds of the paper on an A100 (section 5, implementation details; fast mode: the authors' README)."""


@dataclass(frozen=True)
class Gpu:
    """As published by its maker: dense bfloat16 products, operations a second; bytes a second of its memory."""

    name: str
    products: float
    memory: float


GPUS = (Gpu("A100 80GB SXM", 312e12, 2.04e12), Gpu("H100 SXM", 989e12, 3.35e12))


@dataclass(frozen=True)
class Counts:
    """Of a whole schedule.

    Attributes:
        unet, encodes, texts: Operations; `encodes` if every sample's picture is encoded, `texts` if the prompt is
            encoded in every step.
        moved: Bytes of optimizer steps.
    """

    unet: float
    encodes: float
    texts: float
    moved: float


def schedules() -> Mapping[str, tuple[Stage, ...]]:
    """The default and the fast one."""
    changes: Mapping[str, Mapping[str, Any]] = {str(key): its for key, its in ATTNDREAMBOOTH.presets["fast"].items()}
    fast = tuple(replace(stage, **changes.get(stage.name, {})) for stage in ATTNDREAMBOOTH.stages)
    return {"default": ATTNDREAMBOOTH.stages, "fast": fast}


def counted(stages: tuple[Stage, ...], shape: Mapping[str, Any], encode: float, text: float) -> Counts:
    """The counts of a schedule on a U-Net of this shape."""
    unet = moved = 0.0
    for stage in stages:
        walked = footprint.parts(shape, RESOLUTION // 8, tokens=TOKENS, recorded=stage.regularised)
        unet += stage.steps * footprint.step_operations(walked, stage)
        moved += stage.steps * OPTIMIZER_BYTES * footprint.trained_weights(walked, stage)
    samples = sum(stage.steps * stage.batch_size for stage in stages)
    return Counts(unet, samples * encode, samples * text, moved)


def encoders() -> tuple[float, float]:
    """Operations of one picture's VAE encode, and of one prompt's forward pass through the text encoder."""
    with FakeTensorMode():
        components = components_of(LAYOUT)
        (encoder,) = components.text_encoders
        operations = []
        for call in (
            lambda: components.vae.encode(torch.zeros(1, 3, RESOLUTION, RESOLUTION)),
            lambda: encoder.model(torch.zeros(1, TOKENS, dtype=torch.long)),
        ):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                call()
            operations.append(float(counter.get_total_flops()))
    return operations[0], operations[1]


def table() -> list[str]:
    """The counts of both schedules, and their times on each GPU at each share."""
    with FakeTensorMode():
        shape = unet_of(LAYOUTS[LAYOUT]).config
    encode, text = encoders()
    lines = [
        "| schedule | U-Net | VAE, every sample | text, every sample | optimizer |",
        "|---|---|---|---|---|",
    ]
    found = {name: counted(stages, shape, encode, text) for name, stages in schedules().items()}
    for name, its in found.items():
        cells = [f"{value / 1e15:.1f} PFLOP" for value in (its.unet, its.encodes, its.texts)]
        lines.append(f"| {name} | {' | '.join(cells)} | {its.moved / 1e12:.1f} TB |")
    shares = " | ".join(f"{share:.0%}" for share in SHARES)
    lines += ["", f"| GPU | schedule | VAE | {shares} | share needed |", "|---|---|---|" + "---|" * (len(SHARES) + 1)]
    for gpu in GPUS:
        for name, its in found.items():
            for how, work in (("in every step", its.unet + its.encodes), ("once (a pool)", its.unet)):
                beside = its.moved / gpu.memory
                times = [f"{work / (share * gpu.products) + beside:.0f} s" for share in SHARES]
                needed = work / gpu.products / (GOALS[name] - beside) if gpu is GPUS[0] else None
                goal = f"{needed:.0%} for {GOALS[name]:.0f} s" if needed else ""
                lines.append(f"| {gpu.name} | {name} | {how} | {' | '.join(times)} | {goal} |")
    lines.append("")
    for name, its in found.items():
        rate = (its.unet + its.encodes + its.texts) / PAPERS[name]
        lines.append(
            f"The paper's {PAPERS[name] / 60:.0f} minutes ({name}) are {rate / 1e12:.0f} TFLOP/s of the same work."
        )
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
