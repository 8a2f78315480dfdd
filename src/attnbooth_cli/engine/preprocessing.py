"""How pictures become what a CLIP judge sees, as Textual Inversion's evaluation code does it.

There, pictures are tensors in [-1, 1], and resizing acts on tensors, in torch's bicubic interpolation without
antialiasing: strongly reduced pictures come out sharper, and scores differ from those of CLIP's own preprocessing.
Training pictures are brought to a square of 256 pixels before, as its dataset does (scripts/evaluate_model.py,
ldm/data/personalized.py); generated ones are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures (Radford et al. 2021, released code)."""


TRAINING_SIDE = 256


def textual_inversion_training(picture: Image.Image) -> Image.Image:
    """A training picture as its dataset gives it to the judge: stretched to a square, bicubic and antialiased."""
    return picture.convert("RGB").resize((TRAINING_SIDE, TRAINING_SIDE), Image.Resampling.BICUBIC)


def resized(pixels: Tensor, size: int) -> Tensor:
    """The shorter side of [b, 3, h, w] brought to `size`, the longer in proportion, rounded down."""
    height, width = pixels.shape[-2:]
    short, long = min(height, width), max(height, width)
    longer = int(size * long / short)
    target = (size, longer) if height <= width else (longer, size)
    if target == (height, width):
        return pixels
    return F.interpolate(pixels, target, mode="bicubic", align_corners=False, antialias=False)


def centre_cropped(pixels: Tensor, size: int) -> Tensor:
    """The middle `size` x `size` of [b, 3, h, w], both sides at least `size`."""
    top, left = (round((side - size) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def textual_inversion_pixels(
    pictures: Sequence[Image.Image],
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """RGB pictures as [n, 3, size, size] float32: resize, centre crop, normalise; pictures of any sizes."""
    rows = []
    for picture in pictures:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None]
        pixels = (pixels.float() / 127.5 - 1) / 2 + 0.5
        rows.append(centre_cropped(resized(pixels, size), size))
    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (torch.cat(rows) - centre) / spread
