"""One loop that runs any stage (paper section 4.2).

What differs between stages is data: which parameters train, and the numbers in `Stage`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnbooth_cli.engine import adapters, footprint, optimizers
from attnbooth_cli.engine.attention import cross_attention_modules
from attnbooth_cli.engine.checkpoint import Checkpoint, load_into, misfit
from attnbooth_cli.engine.conditioning import Subject, conditioning_of, recording, told
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.devices import release_memory
from attnbooth_cli.engine.methods import AdamW, OptimizerName, Stage
from attnbooth_cli.engine.objective import StepLosses, accumulate_gradients, process_share
from attnbooth_cli.engine.weights import all_finite
from attnbooth_cli.errors import DivergedError, is_out_of_memory

Parameters = dict[str, nn.Parameter]

INITIAL_SCALE = 2.0**16
"""Loss scale of fp16 (torch.amp.GradScaler's default)."""


@dataclass(frozen=True)
class Progress:
    """The live state of a stage after `step` steps, as checkpoints and samples need it."""

    stage: Stage
    step: int
    parameters: Parameters
    optimizer: Any
    scaler: Any
    losses: StepLosses
    seconds: float


def trainable_parameters(subject: Subject, stage: Stage) -> Parameters:
    """The parameters a stage trains, by name; everything else stays bit-identical.

    embedding: the rows of [V]. attention: every parameter of the U-Net's cross-attention modules, not their norms.
    unet: the whole U-Net. An adapter's own parameters take their place, with the rows of [V] last if it trains them.
    """
    unet = subject.components.unet
    if stage.adapter and not stage.adapts_unet:
        rows = {"placeholder": subject.rows} if stage.embedding_rate else {}
        return {**dict(subject.components.prompting.module.named_parameters()), **rows}
    match stage.name:
        case "embedding":
            return {"placeholder": subject.rows}
        case "attention":
            return {
                f"{name}.{key}": parameter
                for name, module in cross_attention_modules(unet).items()
                for key, parameter in module.named_parameters()
            }
        case "unet":
            return adapters.parameters(unet) if stage.adapts_unet else dict(unet.named_parameters())


def run_stage(
    stage: Stage,
    subject: Subject,
    source: LatentSource,
    accelerator: Any,
    constants: AdamW,
    *,
    optimizer_name: OptimizerName = "adamw",
    micro_batch_size: int = 0,
    gradient_checkpointing: bool = False,
    resume: Checkpoint | None = None,
    after_step: Callable[[Progress], None] = lambda _: None,
    lowered: Callable[[int], None] = lambda _: None,
) -> None:
    """Trains one stage to its last step.

    A step that does not fit the device's memory is done again in micro-batches of half the size: the same samples, and
    sums that come to the same.

    Args:
        micro_batch_size: Samples computed at once in a process, 0 for all of its share.
        resume: A checkpoint of this very stage to continue from.
        after_step: Called after every optimiser step; may raise to stop.
        lowered: Called with the size of micro-batches from now on, when memory did not suffice.

    Raises:
        DivergedError: a loss or a trained weight is no longer finite.
    """
    components = subject.components
    if stage.adapts_unet:
        adapters.attach(components.unet, stage, source.seed)
    parameters = trainable_parameters(subject, stage)
    with only_trainable(parameters), checkpointing(components.unet, gradient_checkpointing):
        optimizer = accelerator.prepare(
            optimizers.make(
                optimizer_name, parameter_groups(stage, parameters), stage.learning_rate, constants, accelerator.device
            )
        )
        first_step = 0
        if accelerator.scaler is not None:
            reset_scaler(accelerator.scaler, accelerator.device)
        if resume:
            _restore(resume, parameters, optimizer, accelerator.scaler, optimizer_name)
            first_step = resume.step
        elif updates_early(stage, accelerator, constants, optimizer_name, micro_batch_size):
            optimizers.begin(optimizer, list(parameters.values()))
        share = process_share(stage.batch_size, accelerator.process_index, accelerator.num_processes)
        source.look_ahead(stage.name, first_step, share, stage.batch_size)
        conditioning = conditioning_of(stage, subject, source, accelerator)
        with recording(stage, subject) as recorder:

            def gradients(step: int, size: int) -> StepLosses | None:
                """A step's losses, its gradients held or spent; None if the batches did not fit memory and smaller
                ones might. With the return the exception is gone, which holds all that the attempt allocated."""
                early = updates_early(stage, accelerator, constants, optimizer_name, size)
                try:
                    with (
                        optimizers.updating_early(optimizer, parameters.values() if early else ()) as updates,
                        told(components),
                    ):
                        return accumulate_gradients(
                            stage, step, subject, source, accelerator, conditioning, recorder, size
                        )
                except Exception as error:
                    if not is_out_of_memory(error) or updates.begun or not half(size, stage, accelerator):
                        raise
                    return None

            for step in range(first_step, stage.steps):
                started = time.perf_counter()
                if step + 1 < stage.steps:
                    source.look_ahead(stage.name, step + 1, share, stage.batch_size)
                optimizer.zero_grad(set_to_none=True)
                while (losses := gradients(step, micro_batch_size)) is None:
                    micro_batch_size = half(micro_batch_size, stage, accelerator)
                    optimizer.zero_grad(set_to_none=True)
                    release_memory(accelerator.device)
                    lowered(micro_batch_size)
                add_over_processes(parameters, accelerator)
                if constants.max_gradient_norm is not None:
                    accelerator.clip_grad_norm_(parameters.values(), constants.max_gradient_norm)
                optimizer.step()
                _require_finite(stage, step + 1, losses, parameters)
                seconds = time.perf_counter() - started
                after_step(Progress(stage, step + 1, parameters, optimizer, accelerator.scaler, losses, seconds))
    accelerator.free_memory()  # it would keep this stage's optimiser state to the end of the run


def parameter_groups(stage: Stage, parameters: Parameters) -> list[dict[str, Any]]:
    """AdamW's groups, in the order of `parameters`: the embedding beside other things has a rate of its own."""
    rows = [its for name, its in parameters.items() if name == "placeholder" and stage.embedding_rate]
    others = [its for its in parameters.values() if not any(its is row for row in rows)]
    return [{"params": others}, *([{"params": rows, "lr": stage.embedding_rate}] if rows else [])]


def updates_early(
    stage: Stage, accelerator: Any, constants: AdamW, optimizer_name: OptimizerName, micro_batch_size: int
) -> bool:
    """Whether weights are updated during the backward pass (`footprint.updates_early`), in a run of one process whose
    gradients have their own scale."""
    alone = accelerator.num_processes == 1 and accelerator.scaler is None
    return alone and footprint.updates_early(stage, micro_batch_size or stage.batch_size, constants, optimizer_name)


def half(micro_batch_size: int, stage: Stage, accelerator: Any) -> int:
    """Half the size of this process's micro-batches, rounded up; 0 if they are single samples already."""
    share = len(process_share(stage.batch_size, accelerator.process_index, accelerator.num_processes))
    size = min(micro_batch_size or share, share)
    return -(-size // 2) if size > 1 else 0


def optimizer_tensors(progress: Progress) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` for torch's AdamW.

    A parameter is absent while a gradient scaler has skipped every step so far.
    """
    return optimizers.stored(progress.optimizer.state_dict()["state"], list(progress.parameters))


def reset_scaler(scaler: torch.amp.GradScaler, device: torch.device) -> None:
    """Gives each stage a fresh loss scale, so that it begins alike whether or not the run was stopped before it.

    The scale is made real at once: otherwise the first loss would, and a process whose share of the batch is empty has
    none to step with.
    """
    state = scaler.state_dict()
    scaler.load_state_dict({**state, "scale": INITIAL_SCALE, "_growth_tracker": 0})
    scaler.scale(torch.zeros((), device=device))


def _restore(
    checkpoint: Checkpoint, parameters: Parameters, optimizer: Any, scaler: Any, optimizer_name: OptimizerName
) -> None:
    load_into(parameters, checkpoint)
    places = {name: index for index, name in enumerate(parameters)}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors("optimizer").items():
        kind, _, name = key.partition("/")
        found.setdefault(name, {})[kind] = tensor
    for name, its in found.items():
        if name not in places or not optimizers.fits(optimizer_name, its, parameters[name]):
            raise misfit(checkpoint.folder / "optimizer.safetensors", name)
    state = {
        places[name]: {kind: optimizers.restored(tensor) for kind, tensor in its.items()} for name, its in found.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None and checkpoint.scaler is not None:
        scaler.load_state_dict(checkpoint.scaler)


@contextmanager
def only_trainable(parameters: Parameters) -> Iterator[None]:
    """Turns gradients on for `parameters` during the block; everything else is frozen already."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


@contextmanager
def checkpointing(unet: Any, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing during the block; diffusers does it in training mode only (its dropout is zero)."""
    if not wanted:
        yield
        return
    unet.enable_gradient_checkpointing()
    unet.train()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
        unet.eval()


def add_over_processes(parameters: Parameters, accelerator: Any) -> None:
    """Sums gradients over processes. Shares may be uneven or empty, so this is a plain sum and not DDP's mean."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters.values():
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        parameter.grad = accelerator.reduce(gradient, reduction="sum")


def _require_finite(stage: Stage, step: int, losses: StepLosses, parameters: Parameters) -> None:
    if not (math.isfinite(losses.diffusion) and math.isfinite(losses.attention)):
        raise diverged(stage, step, "the loss")
    if step == stage.steps and not all_finite(parameters):
        raise diverged(stage, step, "a trained weight")


def diverged(stage: Stage, step: int, what: str) -> DivergedError:
    """The error for something that is no longer finite."""
    return DivergedError(
        f"{what} is no longer finite at step {step} of stage {stage.name}; what was saved before is kept",
        f"lower train.{stage.name}.learning_rate ({stage.learning_rate:g}), or use --precision float32",
    )
