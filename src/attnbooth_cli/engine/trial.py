"""How long it will take, from one measured trial step, said before the work begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from attnbooth_cli.engine.conditioning import Subject, conditioning_of, recording, told
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.loop import checkpointing, only_trainable, trainable_parameters
from attnbooth_cli.engine.methods import Stage, StageName
from attnbooth_cli.engine.objective import accumulate_gradients
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.errors import is_out_of_memory

TRIAL_BATCH = 4
"""Most samples in a trial step."""

RELATIVE_COST: dict[StageName, float] = {"embedding": 1.67 / 2.41, "attention": 1.70 / 2.41, "unet": 1.0}
"""TFLOP of a stage's step over those of a step of stage `unet` (counted on Stable Diffusion 2.1 at 512 pixels)."""


def estimate_seconds(
    stages: Sequence[Stage],
    already_done: int,
    subject: Subject,
    source: LatentSource,
    plan: Plan,
    accelerator: Any,
) -> float | None:
    """Seconds for `stages`, the first of which has `already_done` steps behind it.

    The gradients of cross-attention training are computed twice and the second time is measured. Nothing changes by
    it: no weight moves, and randomness is keyed, not consumed. None when there is nothing to do, or when the trial
    does not fit the memory.
    """
    if not stages:
        return None
    size = min(TRIAL_BATCH, plan.micro_batch_size or TRIAL_BATCH, *(stage.batch_size for stage in stages))
    trial = replace(plan.stages[1], batch_size=size)
    if not any(stage.regularised for stage in stages):
        trial = replace(trial, mean_weight=0.0, variance_weight=0.0)
    unet = subject.components.unet
    with (
        only_trainable(trainable_parameters(subject, trial)),
        checkpointing(unet, plan.gradient_checkpointing),
        told(subject.components) if trial.adapter else nullcontext(),
        recording(trial, subject) as recorder,
    ):
        conditioning = conditioning_of(trial, subject, source, accelerator)
        try:
            for _ in range(2):
                started = time.perf_counter()
                accumulate_gradients(
                    trial, 0, subject, source, accelerator, conditioning, recorder, plan.micro_batch_size
                )
                seconds = time.perf_counter() - started
        except Exception as error:
            if is_out_of_memory(error):
                return None
            raise
    per_sample = seconds / size / RELATIVE_COST[trial.name]
    steps = [stages[0].steps - already_done, *(stage.steps for stage in stages[1:])]
    return sum(
        count * stage.batch_size * RELATIVE_COST[stage.name] * per_sample * (2 if stage.prior_weight else 1)
        for count, stage in zip(steps, stages, strict=True)
    )
