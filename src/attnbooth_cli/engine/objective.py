"""A step's objective and its gradients (paper section 4.2).

Micro-batches and processes add up to exactly the batch's objective: the diffusion loss is a mean over the batch, the
regulariser a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnbooth_cli.engine import context
from attnbooth_cli.engine.attention import StatisticsRecorder
from attnbooth_cli.engine.conditioning import Conditioner, Subject
from attnbooth_cli.engine.data import Batch, LatentSource
from attnbooth_cli.engine.families import Components, Conditioning
from attnbooth_cli.engine.losses import attention_regularisation, diffusion_loss, diffusion_target, min_snr_weights
from attnbooth_cli.engine.methods import Stage
from attnbooth_cli.engine.tokens import knows


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
            with context_loss(stage, step, indices, subject, source, batch, accelerator) as around:
                accelerator.backward(around)
                totals[3] += around.detach()
        if stage.prior_weight:
            prior = part * stage.prior_weight * prior_loss(stage, step, indices, subject, accelerator, conditioning)
            accelerator.backward(prior)
            totals[4] += prior.detach()
    return StepLosses(*accelerator.reduce(totals, reduction="sum").tolist())


@contextmanager
def context_loss(
    stage: Stage,
    step: int,
    indices: Sequence[int],
    subject: Subject,
    source: LatentSource,
    batch: Batch,
    accelerator: Any,
) -> Iterator[Tensor]:
    """CoRe's terms (`context`) of a micro-batch, each sample with a prompt of its own.

    As in its authors' code, that of the encodings is a mean over the whole batch and that of the maps a sum over it, so
    that either adds up over micro-batches. For the block, to which their backward pass belongs.
    """
    components = subject.components
    (encoder,) = components.text_encoders
    known = [text for text in context.PROMPTS if knows(encoder.tokenizer, text.replace("{}", ""))]
    numbers = [source.prompt_number(f"{stage.name} context", step, index, len(known)) for index in indices]
    noisy = components.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    with ExitStack() as regularised:
        with accelerator.autocast():
            terms = context.context_regularisation(
                components,
                subject.placeholder,
                subject.rows,
                [known[number] for number in numbers],
                noisy,
                batch.timesteps,
                (stage.context_weight / stage.batch_size, stage.context_attention_weight),
            )
            around = regularised.enter_context(terms)
        yield around


def prior_loss(
    stage: Stage, step: int, indices: Sequence[int], subject: Subject, accelerator: Any, conditioning: Conditioner
) -> Tensor:
    """The diffusion loss on as many pictures of the class, with the class's prompt (DreamBooth, equation 2).

    Noise weighting is for the concept's pictures alone, as in huggingface/diffusers, train_dreambooth.py.
    """
    if subject.prior is None:
        raise ValueError(f"stage {stage.name} has a prior weight and no pictures of the class")
    batch = subject.prior.batch(f"{stage.name} prior", step, indices, stage.batch_size)
    plain = replace(stage, mean_weight=0.0, variance_weight=0.0, snr_gamma=0.0)
    with accelerator.autocast():
        return objective(plain, subject.components, batch, conditioning.of_class(), None).diffusion


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
