"""What a run will need, before it begins and without torch: memory at its peak, and time.

Memory comes from the shape of the base model (`footprint`), in float32: half precisions need less. Time comes from the
same counts at a rate that was measured: that of the newest run here whose log tells how long its steps took.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from attnbooth_cli.engine import footprint, rates
from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.footprint import FLOAT, MOMENT_BYTES, PAGED
from attnbooth_cli.engine.machine import free_host_memory
from attnbooth_cli.engine.methods import METHODS, Stage
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.errors import ResourceError
from attnbooth_cli.project.documents import read_json_object

ACCELERATORS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dri"))
"""Where Linux has the drivers of NVIDIA, AMD and Intel devices."""
LIBRARIES = 650_000_000
"""Bytes a process holds once torch, diffusers and transformers are imported (measured on Linux, CPU build)."""
ENCODER_ROOM = 7
"""Activations of the VAE's widest layer that are held at once while a picture is encoded or decoded (measured)."""
TIGHT = 0.5
"""Part of the memory from which on it is tight: an allocator that keeps what was freed took up to 1.4 of the forecast
(Stable Diffusion 1.5 at half width), and other programs want some too."""
TIMED_STEPS = 5
"""Steps of a stage whose median is taken for its rate."""
MAX_HEADER = 100_000_000
"""Bytes of a safetensors header (the library's own limit)."""


@dataclass(frozen=True)
class StageForecast:
    """What a stage will need.

    Attributes:
        peak: Bytes at its peak, everything included.
        operations: Floating-point operations of all its steps.
    """

    name: str
    peak: int
    operations: int


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Attributes:
        smallest: Bytes at the peak of micro-batches of one sample, unless that is more: they need all gradients.
    """

    stages: tuple[StageForecast, ...]
    smallest: int

    @property
    def peak(self) -> int:
        """Bytes at the peak of the whole run."""
        return max(stage.peak for stage in self.stages)

    @property
    def operations(self) -> int:
        """Floating-point operations of all stages."""
        return sum(stage.operations for stage in self.stages)


@dataclass(frozen=True)
class Outlook:
    """A forecast on this computer.

    Attributes:
        forecast: None for a base model whose shape cannot be read.
        device: "cpu", or None if only torch could tell.
        free: Bytes of memory that are free, on the CPU.
        seconds: Of all steps, at `rate`; None before any was measured.
    """

    forecast: Forecast | None
    device: str | None
    free: int | None
    seconds: float | None
    rate: rates.Rate | None


def forecast(plan: Plan, base: BaseModel) -> Forecast | None:
    """What a run of `plan` will need; None for a base model whose shape cannot be read (a single file)."""
    unet, vae = (read_json_object(base.path / name / "config.json") for name in ("unet", "vae"))
    if base.kind == "file" or unet is None or vae is None:
        return None
    stages = [stage for stage in plan.stages if stage.enabled]
    try:
        side = plan.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
        walked = {stage.name: footprint.parts(unet, side, recorded=stage.regularised) for stage in stages}
        loaded = FLOAT * sum(_numbers(base.path / name, base.variant) for name in ("unet", "vae", "text_encoder"))
        room: int = ENCODER_ROOM * FLOAT * plan.resolution**2 * vae["block_out_channels"][0]
    except (KeyError, TypeError, ValueError, OSError):
        return None

    def peak(stage: Stage, batch: int) -> int:
        early = footprint.updates_early(stage, batch, METHODS[plan.method].optimizer, plan.optimizer)
        checkpointing = plan.gradient_checkpointing
        step = footprint.step_bytes(walked[stage.name], stage, batch, checkpointing=checkpointing, early=early)
        held = 0 if plan.optimizer in PAGED else MOMENT_BYTES[plan.optimizer]
        moments = held * footprint.trained_weights(walked[stage.name], stage)
        return LIBRARIES + loaded + moments + max(step, room)

    def at_once(stage: Stage) -> int:
        return min(plan.micro_batch_size or stage.batch_size, stage.batch_size)

    told = tuple(
        StageForecast(
            stage.name, peak(stage, at_once(stage)), stage.steps * operations(walked[stage.name], stage, plan)
        )
        for stage in stages
    )
    return Forecast(told, min(max(stage.peak for stage in told), max(peak(stage, 1) for stage in stages)))


def micro_batches(plan: Plan, base: BaseModel, room: int) -> int:
    """The largest micro-batches that fit: halves of halves of the largest batch, 0 where whole batches do.

    Args:
        room: Bytes for the whole process.
    """
    largest = size = max(stage.batch_size for stage in plan.stages)
    while size > 1:
        expected = forecast(replace(plan, micro_batch_size=size), base)
        if expected is None or expected.peak <= room:
            break
        size = -(-size // 2)
    return size if size < largest else 0


def is_tight(plan: Plan, base: BaseModel, room: int) -> bool:
    """Whether a run may come near the end of the memory there is, so that saving some is worth time.

    Args:
        room: Bytes for the whole process.
    """
    expected = forecast(plan, base)
    return expected is not None and expected.peak > TIGHT * room


def operations(walked: Sequence[footprint.Part], stage: Stage, plan: Plan) -> int:
    """Floating-point operations of one step in the U-Net, the class's pictures included."""
    once = footprint.step_operations(walked, stage, checkpointing=plan.gradient_checkpointing)
    return once * (2 if stage.prior_weight else 1)


def note_rate(
    plan: Plan, stage: Stage, unet: Mapping[str, Any], side: int, place: str, seconds: Sequence[float]
) -> None:
    """Notes how fast a stage was, for forecasts to come.

    Args:
        unet: The U-Net's configuration.
        side: Of the latents.
        place: Device and precision.
        seconds: Of its steps; fewer than `TIMED_STEPS` say nothing.
    """
    if len(seconds) < TIMED_STEPS:
        return
    with contextlib.suppress(KeyError, TypeError, ValueError):
        walked = footprint.parts(unet, side, recorded=stage.regularised)
        rates.note(place, plan.base.model, operations(walked, stage, plan) / statistics.median(seconds))


def likely_device(wanted: str) -> str | None:
    """ "cpu" where that is asked for, or where nothing else can be there; None if only torch could tell."""
    if wanted == "cpu" or (wanted == "auto" and sys.platform == "linux" and not any(map(Path.exists, ACCELERATORS))):
        return "cpu"
    return None


def outlook(plan: Plan, base: BaseModel) -> Outlook:
    """What can be said before a run of `plan`.

    Raises:
        ResourceError: it cannot fit this computer's memory, even one picture at a time; with the numbers, in GB.
    """
    expected, device = forecast(plan, base), likely_device(plan.device)
    if expected is None:
        return Outlook(None, device, None, None, None)
    free = free_host_memory() if device == "cpu" else None
    if free is not None and expected.smallest > free:
        raise ResourceError(
            f"training needs about {expected.smallest / 1e9:.1f} GB of memory even one picture at a time, and "
            f"{free / 1e9:.1f} GB are free",
            "free some, or train less of the model: --method lora, or --until attention",
        )
    rate = rates.newest(device, plan.base.model)
    return Outlook(expected, device, free, expected.operations / rate.operations if rate else None, rate)


def _numbers(folder: Path, variant: str | None) -> int:
    """How many numbers a component's weights are, from the headers of its files.

    Raises:
        OSError, ValueError: a file cannot be read.
    """
    pattern = f"*.{variant}.safetensors" if variant else "*.safetensors"
    files = [path for path in folder.glob(pattern) if variant or ".fp16." not in path.name]
    plain = [path for path in files if ".non_ema." not in path.name]
    return sum(prod(shape) for path in plain for shape in _shapes(path))


def _shapes(path: Path) -> list[list[int]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > MAX_HEADER:
            raise ValueError(f"{path} is not a safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    return [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
