"""What is looked at: a concept after one of its stages, or the base model alone, making a picture or seeing one.

Each gives a `View`: the picture, and where every word of the prompt looked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from attnbooth_cli.engine.attention import ReadingProcessor, processors
from attnbooth_cli.engine.data import encode, to_tensor
from attnbooth_cli.engine.families import FAMILIES, Components
from attnbooth_cli.engine.maps import MapRecorder, Recording, Selection, pair_of
from attnbooth_cli.engine.methods import StageName
from attnbooth_cli.engine.sampling import Request, SamplingSettings, sample
from attnbooth_cli.engine.tokens import Placeholder, maximum_length
from attnbooth_cli.engine.words import Word, choose, words_of

NOISE_LEVELS = 10
"""At how many timesteps, evenly spread over the training schedule, an existing picture is looked at (our choice)."""


@dataclass(frozen=True)
class View:
    """One picture with its maps.

    Attributes:
        label: "base model", "after stage attention", or a project's name.
        project, run, stage: Whose; None for the base model.
        prompt: With [V] spelt out.
        timesteps: For an existing picture, the noise it was seen under: what `recording` calls a step.
        first_step: The number of the first denoising step that was read.
    """

    label: str
    project: str | None
    run: str | None
    stage: StageName | None
    method: str | None
    prompt: str
    picture: Image.Image
    recording: Recording
    timesteps: tuple[int, ...] = ()
    first_step: int = 1


def recorder_for(
    components: Components,
    concept: Placeholder,
    prompt: str,
    settings: SamplingSettings,
    selection: Selection,
    wanted: Sequence[str],
    *,
    guided: bool,
    as_there: bool = False,
) -> MapRecorder:
    """A recorder of the wanted words of a prompt (of the negative prompt in the unconditional branch).

    Args:
        as_there: Whether a wanted word may be missing.

    Raises:
        InputError: a wanted word is not there.
    """
    (encoder,) = components.text_encoders
    text = prompt if selection.branch == "conditional" else settings.negative
    words = words_of(encoder.tokenizer, concept, text, maximum_length(encoder.tokenizer, encoder.model))
    scale = components.pixels_per_latent
    return MapRecorder(
        choose(words, concept, wanted, as_there=as_there),
        (settings.height // scale, settings.width // scale),
        selection,
        guided,
        components.prompting.parts if components.prompting else 1,
        pair_of(words),
    )


def make(
    components: Components,
    recorder: MapRecorder,
    requests: Sequence[Request],
    settings: SamplingSettings,
    after_step: Callable[[int], None] = lambda _: None,
) -> tuple[list[Image.Image], Recording]:
    """Makes pictures in one batch, recording; they are bit for bit those that are made without.

    Args:
        requests: All with the prompt that `recorder` is for.

    Raises:
        InputError: nothing is there of what the recorder should read.
    """

    def between(step: int) -> None:
        recorder.next_step()
        after_step(step)

    with recording(components, recorder):
        made = list(sample(components, requests, settings, batch_size=len(requests), between_steps=between))
    return made, recorder.recording()


def see(
    components: Components,
    recorder: MapRecorder,
    prompt: str,
    picture: Image.Image,
    seed: int,
    after_step: Callable[[int], None] = lambda _: None,
) -> tuple[tuple[int, ...], Recording]:
    """Shows the U-Net an existing picture under `NOISE_LEVELS` amounts of noise, as in training, recording.

    Args:
        picture: Of the size that `recorder` is for.
        seed: Of the noise, one draw for all levels.

    Returns:
        The timesteps that were read, the most noise first, and what was read.

    Raises:
        InputError: nothing is there of what the recorder should read.
    """
    scheduler, device, dtype = components.noise_scheduler, components.device, components.unet.dtype
    pixels = to_tensor(picture).unsqueeze(0).to(device, components.vae.dtype)
    total = int(scheduler.config.num_train_timesteps)
    timesteps = tuple(int(total * (level + 0.5) / NOISE_LEVELS) for level in reversed(range(NOISE_LEVELS)))
    with torch.no_grad(), recording(components, recorder):
        mean, _ = encode(components.vae, pixels)
        latents = mean.float()
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(device)
        told = FAMILIES[components.family].encode(components, [prompt])
        with _prompted(components, prompt):
            for index, timestep in enumerate(timesteps):
                time = torch.tensor([timestep], device=device)
                noisy: Tensor = scheduler.add_noise(latents, noise, time)
                components.unet(noisy.to(dtype), time, **told, return_dict=False)
                recorder.next_step()
                after_step(index)
    first, last = recorder.selection.steps or (1, len(timesteps))
    return timesteps[first - 1 : last], recorder.recording()


def fitted(picture: Image.Image, settings: SamplingSettings) -> Image.Image:
    """A picture at the size pictures are made in: the middle of it, resized."""
    size = (settings.width, settings.height)
    return ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.BILINEAR)


@contextlib.contextmanager
def recording(components: Components, recorder: MapRecorder) -> Iterator[None]:
    """Lets `recorder` read every cross-attention layer during the block."""
    with processors(components.unet, lambda name: ReadingProcessor(name, recorder.read)):
        yield


@contextlib.contextmanager
def _prompted(components: Components, prompt: str) -> Iterator[None]:
    prompting: Any = components.prompting
    if prompting is None:
        yield
        return
    prompting.tell(components, [prompt])
    with prompting.at_work(components):
        yield


def counterpart(word: Word, words: Sequence[Word]) -> Word | None:
    """The same word of another prompt; for [V] the category, where the other prompt has no [V]."""
    alike = [other for other in words if (other.kind, other.text.lower()) == (word.kind, word.text.lower())]
    if word.kind in ("placeholder", "category"):
        alike = [other for kind in (word.kind, "category") for other in words if other.kind == kind]
    return alike[0] if alike else None
