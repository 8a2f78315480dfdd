"""Pictures from prompts: the one code path of training samples, `generate`, `eval` and `inspect-attn`.

diffusers' own pipeline does the denoising. Every picture has its own seeded CPU generator, so it is the same whatever
the batch it is made in (to 1/255) and whatever the device draws.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from attnbooth_cli.engine.families import FAMILIES, Components
from attnbooth_cli.errors import InputError

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),  # reference, inference.py
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
"""Sampler name -> diffusers class and its settings beside the base model's own noise schedule."""

BATCH_SIZE = 8
"""Pictures made at once."""


@dataclass(frozen=True)
class SamplingSettings:
    """How pictures are made (defaults of real base models: the reference's inference.py).

    Attributes:
        width, height: Pixels, multiples of 8.
        negative: The negative prompt, encoded in the unconditional branch.
    """

    steps: int
    guidance: float
    width: int
    height: int
    scheduler: str = "dpm++"
    negative: str = ""


@dataclass(frozen=True)
class Request:
    """One picture to make: a prompt with [V] spelt out, and the seed of its initial noise."""

    prompt: str
    seed: int


def sample(
    components: Components,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    batch_size: int = BATCH_SIZE,
    between_steps: Callable[[int], None] = lambda _: None,
) -> Iterator[Image.Image]:
    """Makes the pictures in order, a batch at a time.

    Args:
        components: On their device; their weights' dtype is the dtype of the computation.
        between_steps: Called with the index of each finished denoising step.

    Yields:
        One RGB picture a request.

    Raises:
        InputError: an unknown scheduler.
    """
    family = FAMILIES[components.family]
    pipeline = family.pipeline(components, make_scheduler(components, settings.scheduler))
    with torch.no_grad():
        texts = list(dict.fromkeys([settings.negative, *(request.prompt for request in requests)]))
        encoded = {text: family.encode(components, [text])["encoder_hidden_states"] for text in texts}
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        with _told(components, batch, settings):
            made = pipeline(
                prompt_embeds=torch.cat([encoded[request.prompt] for request in batch]),
                negative_prompt_embeds=torch.cat([encoded[settings.negative]] * len(batch)),
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                width=settings.width,
                height=settings.height,
                generator=[torch.Generator().manual_seed(request.seed) for request in batch],
                callback_on_step_end=_step_callback(between_steps),
            ).images
        yield from made


def sample_missing(
    components: Components, requests: Sequence[Request], settings: SamplingSettings, missing: Collection[int]
) -> Iterator[tuple[int, Image.Image]]:
    """Makes the pictures at some places of `requests`, in the batches in which all would be made.

    A picture depends, in its last bit, on the batch it is made in: so what an interrupted command left out comes out as
    it would have.

    Yields:
        The place and its picture, in order.

    Raises:
        InputError: an unknown scheduler.
    """
    for start in range(0, len(requests), BATCH_SIZE):
        batch = range(start, min(start + BATCH_SIZE, len(requests)))
        if any(place in missing for place in batch):
            made = sample(components, [requests[place] for place in batch], settings)
            yield from ((place, picture) for place, picture in zip(batch, made, strict=True) if place in missing)


@contextlib.contextmanager
def _told(components: Components, batch: Sequence[Request], settings: SamplingSettings) -> Iterator[None]:
    """What [V] is beyond an embedding acts during the block."""
    prompting = components.prompting
    if prompting is None:
        yield
        return
    guided = settings.guidance > 1  # else diffusers leaves the unconditional half out
    prompting.tell(components, [settings.negative] * (len(batch) * guided) + [request.prompt for request in batch])
    with prompting.at_work(components):
        yield


def make_scheduler(components: Components, name: str) -> Any:
    """A diffusers sampler on the base model's noise schedule.

    Raises:
        InputError: the name is not in `SCHEDULERS`.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise InputError(f"there is no scheduler {name!r}", f"schedulers: {', '.join(SCHEDULERS)}")
    class_name, settings = SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(components.noise_scheduler.config, **settings)


def is_black(picture: Image.Image) -> bool:
    """Whether a picture is all black, the usual sign of a numerical failure."""
    return picture.getextrema() == ((0, 0), (0, 0), (0, 0))


def _step_callback(between_steps: Callable[[int], None]) -> Callable[..., dict[str, Any]]:
    def callback(_pipeline: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        between_steps(step)
        return kwargs

    return callback
