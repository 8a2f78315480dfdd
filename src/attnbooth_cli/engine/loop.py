"""One loop that runs any stage (paper section 4.2).

What differs between stages is data: which parameters train, and the numbers in `Stage`. Micro-batches and processes add
up to exactly the batch's objective: the diffusion loss is a mean over the batch, the regulariser a sum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnbooth_cli.engine.attention import StatisticsRecorder, cross_attention_modules, recording_statistics
from attnbooth_cli.engine.checkpoint import Checkpoint
from attnbooth_cli.engine.data import Batch, LatentSource
from attnbooth_cli.engine.families import FAMILIES, Components, Conditioning
from attnbooth_cli.engine.losses import attention_regularisation, diffusion_loss, diffusion_target
from attnbooth_cli.engine.methods import AdamW, Stage, StageName
from attnbooth_cli.engine.tokens import (
    Placeholder,
    maximum_length,
    placeholder_ids,
    recorded_positions,
    substituted_rows,
)
from attnbooth_cli.engine.weights import all_finite
from attnbooth_cli.errors import DivergedError

Parameters = dict[str, nn.Parameter]

INITIAL_SCALE = 2.0**16
"""Loss scale of fp16 (torch.amp.GradScaler's default)."""


@dataclass(frozen=True)
class StepLosses:
    """The objective's two terms at one step, over the whole batch."""

    diffusion: float
    attention: float


@dataclass(frozen=True)
class Subject:
    """What a stage works on.

    Attributes:
        rows: [n, d] float32, the embedding rows of [V].
        prompt: The training prompt with [V] spelt out.
    """

    components: Components
    placeholder: Placeholder
    rows: nn.Parameter
    prompt: str


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


def trainable_parameters(subject: Subject, stage: StageName) -> Parameters:
    """The parameters a stage trains, by name; everything else stays bit-identical.

    embedding: the rows of [V]. attention: every parameter of the U-Net's cross-attention modules, not their norms.
    unet: the whole U-Net.
    """
    unet = subject.components.unet
    match stage:
        case "embedding":
            return {"placeholder": subject.rows}
        case "attention":
            return {
                f"{name}.{key}": parameter
                for name, module in cross_attention_modules(unet).items()
                for key, parameter in module.named_parameters()
            }
        case "unet":
            return dict(unet.named_parameters())


def run_stage(
    stage: Stage,
    subject: Subject,
    source: LatentSource,
    accelerator: Any,
    constants: AdamW,
    *,
    micro_batch_size: int = 0,
    gradient_checkpointing: bool = False,
    resume: Checkpoint | None = None,
    after_step: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Trains one stage to its last step.

    Args:
        micro_batch_size: Samples computed at once in a process, 0 for all of its share.
        resume: A checkpoint of this very stage to continue from.
        after_step: Called after every optimiser step; may raise to stop.

    Raises:
        DivergedError: a loss or a trained weight is no longer finite.
    """
    components = subject.components
    parameters = trainable_parameters(subject, stage.name)
    with only_trainable(parameters), checkpointing(components.unet, gradient_checkpointing):
        optimizer = accelerator.prepare(
            torch.optim.AdamW(
                parameters.values(),
                lr=stage.learning_rate,
                betas=constants.betas,
                eps=constants.eps,
                weight_decay=constants.weight_decay,
            )
        )
        first_step = 0
        if accelerator.scaler is not None:
            reset_scaler(accelerator.scaler)
        if resume:
            _restore(resume, parameters, optimizer, accelerator.scaler)
            first_step = resume.step
        conditioning = conditioning_of(stage, subject, accelerator)
        with recording(stage, subject) as recorder:
            for step in range(first_step, stage.steps):
                started = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                losses = accumulate_gradients(
                    stage, step, subject, source, accelerator, conditioning, recorder, micro_batch_size
                )
                add_over_processes(parameters, accelerator)
                optimizer.step()
                _require_finite(stage, step + 1, losses, parameters)
                seconds = time.perf_counter() - started
                after_step(Progress(stage, step + 1, parameters, optimizer, accelerator.scaler, losses, seconds))
    accelerator.free_memory()  # it would keep this stage's optimiser state to the end of the run


def accumulate_gradients(
    stage: Stage,
    step: int,
    subject: Subject,
    source: LatentSource,
    accelerator: Any,
    conditioning: Callable[[], Conditioning],
    recorder: StatisticsRecorder | None,
    micro_batch_size: int,
) -> StepLosses:
    """Adds this process's share of one step's gradients and returns the losses over the whole batch."""
    share = process_share(stage.batch_size, accelerator.process_index, accelerator.num_processes)
    totals = torch.zeros(2, device=accelerator.device)
    for indices in split(share, micro_batch_size):
        batch = source.batch(stage.name, step, indices, stage.batch_size)
        with accelerator.autocast():
            diffusion, attention = objective(stage, subject.components, batch, conditioning(), recorder)
        # The batch's mean is the sum of its parts' means weighted by their sizes; the regulariser is a sum already.
        diffusion = diffusion * (len(indices) / stage.batch_size)
        accelerator.backward(diffusion + attention)
        totals += torch.stack([diffusion.detach(), attention.detach()])
    diffusion_total, attention_total = accelerator.reduce(totals, reduction="sum").tolist()
    return StepLosses(diffusion_total, attention_total)


def objective(
    stage: Stage,
    components: Components,
    batch: Batch,
    conditioning: Conditioning,
    recorder: StatisticsRecorder | None,
) -> tuple[Tensor, Tensor]:
    """Diffusion loss (mean over the micro-batch) and attention regularisation (sum over it), two float32 scalars.

    Args:
        conditioning: Leading dimension 1; every sample has the same prompt.
    """
    size = len(batch.timesteps)
    noisy = components.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = diffusion_target(components.noise_scheduler, batch.latents, batch.noise, batch.timesteps)
    expanded = {name: value.expand(size, *value.shape[1:]) for name, value in conditioning.items()}
    with recorder.armed() if recorder else nullcontext():
        prediction = components.unet(noisy, batch.timesteps, **expanded, return_dict=False)[0]
    diffusion = diffusion_loss(prediction, target)
    if recorder is None:
        return diffusion, diffusion.new_zeros(())
    return diffusion, attention_regularisation(recorder.layers, stage.mean_weight, stage.variance_weight)


def process_share(batch_size: int, process: int, processes: int) -> range:
    """The indices of the batch that fall to one process: contiguous, sizes differing by at most one."""
    return range(batch_size * process // processes, batch_size * (process + 1) // processes)


def split(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive pieces of at most `size` (all at once for 0)."""
    for start in range(0, len(indices), size or max(len(indices), 1)):
        yield indices[start : start + (size or len(indices))]


def optimizer_tensors(progress: Progress) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
    state = progress.optimizer.state_dict()["state"]
    return {
        f"{key}/{name}": torch.as_tensor(value)
        for index, name in enumerate(progress.parameters)
        if index in state  # absent while a gradient scaler has skipped every step so far
        for key, value in state[index].items()
    }


def reset_scaler(scaler: torch.amp.GradScaler) -> None:
    """Gives each stage a fresh loss scale, so that it begins alike whether or not the run was stopped before it."""
    state = scaler.state_dict()
    scaler.load_state_dict({**state, "scale": INITIAL_SCALE, "_growth_tracker": 0})


def _restore(checkpoint: Checkpoint, parameters: Parameters, optimizer: Any, scaler: Any) -> None:
    weights = checkpoint.tensors("weights")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    places = {name: index for index, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors("optimizer").items():
        kind, _, name = key.partition("/")
        state.setdefault(places[name], {})[kind] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None and checkpoint.scaler is not None:
        scaler.load_state_dict(checkpoint.scaler)


def conditioning_of(stage: Stage, subject: Subject, accelerator: Any) -> Callable[[], Conditioning]:
    """How a micro-batch gets the prompt's encoding: anew while the embedding trains, else computed once."""
    components = subject.components
    encode = FAMILIES[components.family].encode
    (encoder,) = components.text_encoders
    if stage.name == "embedding":
        ids = placeholder_ids(encoder.tokenizer, subject.placeholder)

        def trained() -> Conditioning:
            with substituted_rows(encoder.model, ids, subject.rows):
                return encode(components, [subject.prompt])

        return trained
    with torch.no_grad(), accelerator.autocast():
        constant = encode(components, [subject.prompt])
    return lambda: constant


def recording(stage: Stage, subject: Subject) -> Any:
    """Recording of the [V] and category columns, or nothing at all when the regulariser is off."""
    if not stage.regularised:
        return nullcontext(None)
    (encoder,) = subject.components.text_encoders
    length = maximum_length(encoder.tokenizer, encoder.model)
    columns = recorded_positions(encoder.tokenizer, subject.placeholder, subject.prompt, length)
    return recording_statistics(subject.components.unet, columns)


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
