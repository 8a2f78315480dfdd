"""Training augmentation (the reference script's recipe, and alternatives to it). Pillow only touches pixels here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

ROTATION_PROBABILITY = 0.75  # reference script
ROTATION_DEGREES = 45.0
FLIP_PROBABILITY = 0.25

Augment = Callable[[Image.Image, int, torch.Generator], Image.Image]
"""(picture, resolution, generator) -> a square of that resolution."""


def published(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """The reference's recipe: rotate (black corners), resize the shorter side, flip, random square crop."""
    rotate, angle, flip, *crop = torch.rand(5, generator=generator).tolist()
    if rotate < ROTATION_PROBABILITY:
        degrees = (2 * angle - 1) * ROTATION_DEGREES
        picture = picture.rotate(degrees, resample=Image.Resampling.NEAREST, expand=True)
    return _flip_and_crop(picture, resolution, flip, crop)


def upright(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """`published` without the rotation, hence without black corners."""
    flip, *crop = torch.rand(3, generator=generator).tolist()
    return _flip_and_crop(picture, resolution, flip, crop)


def unaugmented(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """The centre square and nothing random."""
    return _flip_and_crop(picture, resolution, 1.0, (0.5, 0.5))


def stretched(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """Textual Inversion's: stretched to a square, every other one flipped (its ldm/data/personalized.py)."""
    (flip,) = torch.rand(1, generator=generator).tolist()
    square = squeezed(picture, resolution, generator)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else square


def squeezed(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """ViCo's: stretched to a square, and nothing random (its ldm/data/personalized.py, flip_p 0)."""
    return picture.resize((resolution, resolution), Image.Resampling.BICUBIC)


def cropped(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """DreamBooth's: a random square crop (huggingface/diffusers, train_dreambooth.py without --center_crop)."""
    return _flip_and_crop(picture, resolution, 1.0, torch.rand(2, generator=generator).tolist())


AUGMENTATIONS: dict[str, Augment] = {
    "published": published,
    "upright": upright,
    "stretched": stretched,
    "squeezed": squeezed,
    "cropped": cropped,
    "none": unaugmented,
}


def shorter_side(picture: Image.Image, length: int) -> Image.Image:
    """Resizes so that the shorter side has `length` pixels (Pillow's antialiased bilinear)."""
    scale = length / min(picture.size)
    width, height = (max(length, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), resample=Image.Resampling.BILINEAR)


def _flip_and_crop(picture: Image.Image, resolution: int, flip: float, crop: Sequence[float]) -> Image.Image:
    """Resize the shorter side to `resolution`, flip if the uniform draw says so, crop at two uniform draws."""
    picture = shorter_side(picture, resolution)
    if flip < FLIP_PROBABILITY:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = (
        min(int(draw * (side - resolution + 1)), side - resolution)
        for draw, side in zip(crop, picture.size, strict=True)
    )
    return picture.crop((left, top, left + resolution, top + resolution))
