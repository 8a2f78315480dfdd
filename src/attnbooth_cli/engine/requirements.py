"""What a run cannot do without: checked before it starts, so that it does not fail after hours.

Both checks ask for what is certainly needed, not for what may be: the activations of a step depend on kernels nobody
can foresee, and running out for them halves the micro-batches (`loop.run_stage`).
"""

from __future__ import annotations

from pathlib import Path

import torch

from attnbooth_cli.engine import checkpoint, footprint
from attnbooth_cli.engine.attention import cross_attention_modules
from attnbooth_cli.engine.footprint import FLOAT, MOMENT_BYTES, PAGED
from attnbooth_cli.engine.machine import free_host_memory
from attnbooth_cli.engine.methods import METHODS, Stage
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.errors import ResourceError
from attnbooth_cli.project import durable


def require_disk(folder: Path, plan: Plan, unet: torch.nn.Module) -> None:
    """Refuses a run whose states and results would not fit (three states at once while the oldest is replaced).

    Raises:
        ResourceError: with what is needed and what is free, in GB.
    """
    trained = max(trained_weights(stage, unet) for stage in plan.stages)
    states = checkpoint.KEPT + 1 if plan.checkpoint_every else 1
    unet_steps = next((stage.steps for stage in plan.stages if stage.name == "unet" and stage.enabled), 0)
    snapshots = unet_steps // plan.snapshot_every if plan.snapshot_every else 0
    published = sum(parameter.numel() for parameter in unet.parameters()) if unet_steps else trained
    concepts = published * (2 if plan.save_precision == "float16" else FLOAT) * (snapshots + 2)
    needed = states * trained * (FLOAT + MOMENT_BYTES[plan.optimizer]) + concepts
    durable.require_free_space(folder, needed, "the checkpoints, snapshots and the concept")


def require_memory(plan: Plan, unet: torch.nn.Module, device: torch.device) -> None:
    """Refuses a run whose optimizer state, and gradients where all are needed at once, would not fit beside the model.

    Raises:
        ResourceError: with the stage, what it needs and what is free, in GB.
    """
    if (free := free_memory(device)) is None:
        return
    moments = 0 if plan.optimizer in PAGED else MOMENT_BYTES[plan.optimizer]
    for stage in plan.stages:
        batch = plan.micro_batch_size or stage.batch_size
        early = footprint.updates_early(stage, batch, METHODS[plan.method].optimizer, plan.optimizer)
        needed = trained_weights(stage, unet) * (moments + (0 if early else FLOAT))
        if needed > free:
            what = "the optimizer state" if early else "the gradients and optimizer state"
            raise ResourceError(
                f"{what} of stage {stage.name} alone need{'s' if early else ''} {needed / 1e9:.2f} GB of memory "
                f"on {device}, and {free / 1e9:.2f} GB are free",
                "free some, take another --device, or train less of the model: --method lora, or --until attention",
            )


def trained_weights(stage: Stage, unet: torch.nn.Module) -> int:
    """How many of the U-Net's weights a stage trains itself; adapters and embeddings are small beside them."""
    if not stage.enabled or stage.adapter is not None or stage.name == "embedding":
        return 0
    modules = [unet] if stage.name == "unet" else cross_attention_modules(unet).values()
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device now; None where nothing tells (MPS)."""
    match device.type:
        case "cpu":
            return free_host_memory()
        case "cuda":
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return torch.cuda.mem_get_info(device)[0] + cached
        case _:
            return None
