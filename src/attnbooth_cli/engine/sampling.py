"""Pictures from prompts: the one code path of training samples, `generate`, `eval` and `inspect-attn`.

diffusers' own pipeline does the denoising. Every picture has its own seeded CPU generator, so it is the same whatever
the batch it is made in (to 1/255) and whatever the device draws.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

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
    everything = range(len(requests))
    for _, picture in _made(components, requests, settings, everything, batch_size, between_steps):
        yield picture


def sample_missing(
    components: Components,
    requests: Sequence[Request],
    settings: SamplingSettings,
    missing: Collection[int],
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[int, Image.Image]]:
    """Makes the pictures at some places of `requests`, in the batches in which all would be made.

    A picture depends, in its last bit, on the batch it is made in: so what an interrupted command left out comes out as
    it would have.

    Yields:
        The place and its picture, in order.

    Raises:
        InputError: an unknown scheduler.
    """
    yield from _made(components, requests, settings, missing, batch_size, lambda _: None)


def _made(
    components: Components,
    requests: Sequence[Request],
    settings: SamplingSettings,
    wanted: Collection[int],
    batch_size: int,
    between_steps: Callable[[int], None],
) -> Iterator[tuple[int, Image.Image]]:
    """The pictures at the places `wanted`, from every batch that has one of them.

    A text is encoded once for all batches in a row that need it: pictures of one prompt belong side by side. It is
    encoded alone, so that a picture does not depend on who else is in the batch.
    """
    pipeline = FAMILIES[components.family].pipeline(components, make_scheduler(components, settings.scheduler))
    encoded: dict[str, Tensor] = {}
    for start in range(0, len(requests), batch_size):
        places = range(start, min(start + batch_size, len(requests)))
        if not any(place in wanted for place in places):
            continue
        batch = [requests[place] for place in places]
        encoded = _encodings(components, [settings.negative, *(request.prompt for request in batch)], encoded)
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
        yield from ((place, picture) for place, picture in zip(places, made, strict=True) if place in wanted)


@torch.no_grad()
def _encodings(components: Components, texts: Sequence[str], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each text's hidden states [1, t, d], those that are `known` taken over and all others forgotten."""
    encode = FAMILIES[components.family].encode
    return {
        text: known[text] if text in known else encode(components, [text])["encoder_hidden_states"]
        for text in dict.fromkeys(texts)
    }


@contextlib.contextmanager
def _told(components: Components, batch: Sequence[Request], settings: SamplingSettings) -> Iterator[None]:
    """What [V] is beyond an embedding acts during the block."""
    prompting = components.prompting
    if prompting is None:
        yield
        return
    guided = settings.guidance > 1  # else diffusers leaves the unconditional half out
    away = [settings.negative] * (len(batch) * guided)
    prompting.tell(components, [*away, *(request.prompt for request in batch)], guided=guided)
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
