"""One loop that runs any stage (paper section 4.2).

What differs between stages is data: which parameters train, and the numbers in `Stage`. Micro-batches and processes add
up to exactly the batch's objective: the diffusion loss is a mean over the batch, the regulariser a sum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attnbooth_cli.engine import adapters, context, footprint, offload, optimizers
from attnbooth_cli.engine.attention import StatisticsRecorder, cross_attention_modules, recording_statistics
from attnbooth_cli.engine.checkpoint import Checkpoint, load_into, misfit
from attnbooth_cli.engine.data import Batch, LatentSource
from attnbooth_cli.engine.devices import release_memory
from attnbooth_cli.engine.families import FAMILIES, Components, Conditioning
from attnbooth_cli.engine.losses import attention_regularisation, diffusion_loss, diffusion_target, min_snr_weights
from attnbooth_cli.engine.methods import AdamW, OptimizerName, Stage
from attnbooth_cli.engine.tokens import (
    Placeholder,
    knows,
    maximum_length,
    placeholder_ids,
    recorded_positions,
    substituted_rows,
)
from attnbooth_cli.engine.weights import all_finite
from attnbooth_cli.errors import DivergedError, is_out_of_memory

Parameters = dict[str, nn.Parameter]

CLASS_PROMPT = "a photo of {}"
"""What the class's pictures are called (huggingface/diffusers, examples/dreambooth/README.md: "a photo of dog")."""
INITIAL_SCALE = 2.0**16
"""Loss scale of fp16 (torch.amp.GradScaler's default)."""


@dataclass(frozen=True)
class StepLosses:
    """The objective's terms at one step, over the whole batch, each with its weight.

    Attributes:
        attention_mean, attention_variance: The regulariser's two terms.
        attention_other: ViCo's and CoRe's own terms.
    """

    diffusion: float
    attention_mean: float
    attention_variance: float
    attention_other: float
    prior: float

    @property
    def attention(self) -> float:
        """All that looks at attention, and CoRe's terms."""
        return self.attention_mean + self.attention_variance + self.attention_other


@dataclass(frozen=True)
class Terms:
    """The objective's terms over one micro-batch, float32 scalars.

    Attributes:
        diffusion: A mean over the micro-batch.
        attention_mean, attention_variance: The regulariser's two terms with their weights, sums over it.
        attention_other: What `prompting` adds, a sum over it.
    """

    diffusion: Tensor
    attention_mean: Tensor
    attention_variance: Tensor
    attention_other: Tensor

    @property
    def attention(self) -> Tensor:
        """All that looks at attention."""
        return self.attention_mean + self.attention_variance + self.attention_other


@dataclass(frozen=True)
class Subject:
    """What a stage works on.

    Attributes:
        rows: [n, d] float32, the embedding rows of [V].
        prompts: The training prompts with [V] spelt out; one is drawn for each sample.
        prior: The class's own pictures, for stages with a prior weight.
    """

    components: Components
    placeholder: Placeholder
    rows: nn.Parameter
    prompts: tuple[str, ...]
    prior: LatentSource | None = None


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
            reset_scaler(accelerator.scaler)
        if resume:
            _restore(resume, parameters, optimizer, accelerator.scaler, optimizer_name)
            first_step = resume.step
        elif updates_early(stage, accelerator, constants, optimizer_name, micro_batch_size):
            optimizers.begin(optimizer, list(parameters.values()))
        conditioning = conditioning_of(stage, subject, source, accelerator)
        with recording(stage, subject) as recorder:
            for step in range(first_step, stage.steps):
                started = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                while True:
                    early = updates_early(stage, accelerator, constants, optimizer_name, micro_batch_size)
                    with_gradients = parameters.values() if early else ()
                    try:
                        with optimizers.updating_early(optimizer, with_gradients) as updates, told(components):
                            losses = accumulate_gradients(
                                stage, step, subject, source, accelerator, conditioning, recorder, micro_batch_size
                            )
                        break
                    except Exception as error:
                        smaller = half(micro_batch_size, stage, accelerator)
                        if not is_out_of_memory(error) or not smaller or updates.begun:
                            raise
                    # Only now, with the exception gone, does nothing hold what the attempt had allocated.
                    micro_batch_size = smaller
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


def accumulate_gradients(
    stage: Stage,
    step: int,
    subject: Subject,
    source: LatentSource,
    accelerator: Any,
    conditioning: Conditioner,
    recorder: StatisticsRecorder | None,
    micro_batch_size: int,
) -> StepLosses:
    """Adds this process's share of one step's gradients and returns the losses over the whole batch."""
    share = process_share(stage.batch_size, accelerator.process_index, accelerator.num_processes)
    totals = torch.zeros(5, device=accelerator.device)  # in the order of StepLosses
    for indices in split(share, micro_batch_size):
        batch = source.batch(stage.name, step, indices, stage.batch_size)
        # The batch's mean is the sum of its parts' means weighted by their sizes; the regulariser is a sum already.
        part = len(indices) / stage.batch_size
        with accelerator.autocast():
            terms = objective(stage, subject.components, batch, conditioning.of(step, indices), recorder)
        accelerator.backward(part * terms.diffusion + terms.attention)
        of_attention = (terms.attention_mean, terms.attention_variance, terms.attention_other)
        totals[:4] += torch.stack([part * terms.diffusion, *of_attention]).detach()
        if stage.contextual:
            with accelerator.autocast():
                around = context_loss(stage, step, indices, subject, source, batch)
            accelerator.backward(around)
            totals[3] += around.detach()
        if stage.prior_weight:
            prior = part * stage.prior_weight * prior_loss(stage, step, indices, subject, accelerator, conditioning)
            accelerator.backward(prior)
            totals[4] += prior.detach()
    return StepLosses(*accelerator.reduce(totals, reduction="sum").tolist())


def context_loss(
    stage: Stage, step: int, indices: Sequence[int], subject: Subject, source: LatentSource, batch: Batch
) -> Tensor:
    """CoRe's terms (`context`), a sum over the micro-batch, each sample with a prompt of its own."""
    components = subject.components
    (encoder,) = components.text_encoders
    known = [text for text in context.PROMPTS if knows(encoder.tokenizer, text.replace("{}", ""))]
    numbers = [source.prompt_number(f"{stage.name} context", step, index, len(known)) for index in indices]
    noisy = components.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    return context.context_regularisation(
        components,
        subject.placeholder,
        subject.rows,
        [known[number] for number in numbers],
        noisy,
        batch.timesteps,
        (stage.context_weight, stage.context_attention_weight),
    )


def prior_loss(
    stage: Stage, step: int, indices: Sequence[int], subject: Subject, accelerator: Any, conditioning: Conditioner
) -> Tensor:
    """The diffusion loss on as many pictures of the class, with the class's prompt (DreamBooth, equation 2)."""
    if subject.prior is None:
        raise ValueError(f"stage {stage.name} has a prior weight and no pictures of the class")
    batch = subject.prior.batch(f"{stage.name} prior", step, indices, stage.batch_size)
    unregularised = replace(stage, mean_weight=0.0, variance_weight=0.0)
    with accelerator.autocast():
        return objective(unregularised, subject.components, batch, conditioning.of_class(), None).diffusion


def objective(
    stage: Stage,
    components: Components,
    batch: Batch,
    conditioning: Conditioning,
    recorder: StatisticsRecorder | None,
) -> Terms:
    """The terms of one micro-batch.

    Args:
        conditioning: Leading dimension m, or 1 where every sample has the same prompt.
    """
    size = len(batch.timesteps)
    noisy = components.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = diffusion_target(components.noise_scheduler, batch.latents, batch.noise, batch.timesteps)
    expanded = {name: value.expand(size, *value.shape[1:]) for name, value in conditioning.items()}
    with recorder.armed() if recorder else nullcontext():
        prediction = components.unet(noisy, batch.timesteps, **expanded, return_dict=False)[0]
    scheduler, gamma = components.noise_scheduler, stage.snr_gamma
    weights = min_snr_weights(scheduler, batch.timesteps, gamma) if gamma else None
    diffusion = diffusion_loss(prediction, target, weights)
    mean = variance = other = diffusion.new_zeros(())
    if recorder is not None:
        mean, variance = attention_regularisation(recorder.layers, stage.mean_weight, stage.variance_weight)
    if components.prompting is not None and components.prompting.regularisation is not None:
        other = components.prompting.regularisation
    return Terms(diffusion, mean, variance, other)


def process_share(batch_size: int, process: int, processes: int) -> range:
    """The indices of the batch that fall to one process: contiguous, sizes differing by at most one."""
    return range(batch_size * process // processes, batch_size * (process + 1) // processes)


def split(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive pieces of at most `size` (all at once for 0)."""
    for start in range(0, len(indices), size or max(len(indices), 1)):
        yield indices[start : start + (size or len(indices))]


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


def reset_scaler(scaler: torch.amp.GradScaler) -> None:
    """Gives each stage a fresh loss scale, so that it begins alike whether or not the run was stopped before it."""
    state = scaler.state_dict()
    scaler.load_state_dict({**state, "scale": INITIAL_SCALE, "_growth_tracker": 0})


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


@dataclass(frozen=True)
class Conditioner:
    """How samples get their prompts' encodings.

    Attributes:
        of: Step and the samples' indices to a conditioning of leading dimension m, or 1 where there is one prompt.
        of_class: The conditioning of the class's prompt, leading dimension 1.
    """

    of: Callable[[int, Sequence[int]], Conditioning]
    of_class: Callable[[], Conditioning]


def conditioning_of(stage: Stage, subject: Subject, source: LatentSource, accelerator: Any) -> Conditioner:
    """Prompts are encoded anew at every step while the embedding trains, else once."""
    components = subject.components
    encode = FAMILIES[components.family].encode
    (encoder,) = components.text_encoders

    @lru_cache
    def of_class() -> Conditioning:
        with torch.no_grad(), accelerator.autocast():
            return encode(components, [CLASS_PROMPT.format(subject.placeholder.category)])

    @lru_cache
    def constant() -> Conditioning:
        with torch.no_grad(), accelerator.autocast():
            encoded = encode(components, subject.prompts)
        if not stage.adapter or stage.adapts_unet:
            offload.put_aside(encoder.model, accelerator.device)  # `encode` has it back for the class's prompt
        return encoded

    def drawn(step: int, indices: Sequence[int]) -> list[int]:
        if len(subject.prompts) == 1:
            return [0]
        return [source.prompt_number(stage.name, step, index, len(subject.prompts)) for index in indices]

    def kept(step: int, indices: Sequence[int]) -> Conditioning:
        return {name: value[drawn(step, indices)] for name, value in constant().items()}

    def trained(step: int, indices: Sequence[int]) -> Conditioning:
        """With gradients to the rows."""
        ids = placeholder_ids(encoder.tokenizer, subject.placeholder)
        with substituted_rows(encoder.model, ids, subject.rows):
            return encode(components, [subject.prompts[number] for number in drawn(step, indices)])

    def prompted(step: int, indices: Sequence[int]) -> Conditioning:
        """What else tells the U-Net of [V] is told of the samples too."""
        numbers = drawn(step, indices)
        numbers = numbers if len(numbers) > 1 else numbers * len(indices)
        components.prompting.tell(components, [subject.prompts[number] for number in numbers])
        components.prompting.draw(source, stage.name, step, indices, stage.batch_size)
        return trained(step, indices) if stage.embedding_rate else kept(step, indices)

    if stage.adapter and not stage.adapts_unet:
        return Conditioner(prompted, of_class)
    return Conditioner(trained if stage.name == "embedding" else kept, of_class)


def told(components: Components) -> Any:
    """What [V] is beyond an embedding acts during the block."""
    return components.prompting.at_work(components) if components.prompting is not None else nullcontext()


def recording(stage: Stage, subject: Subject) -> Any:
    """Recording of the [V] and category columns, or nothing at all when the regulariser is off."""
    if not stage.regularised:
        return nullcontext(None)
    (encoder,) = subject.components.text_encoders
    length = maximum_length(encoder.tokenizer, encoder.model)
    columns = recorded_positions(encoder.tokenizer, subject.placeholder, subject.prompts[0], length)
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
