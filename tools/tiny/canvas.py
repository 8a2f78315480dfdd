"""The square every picture is painted on: its coordinates, smooth noise and soft edges.

Pictures are float32 `[SIDE, SIDE, 3]` in [0, 1] until they are rounded; `X` runs to the right and `Y` down, both
over [0, 1]. Nothing here has an edge sharper than a pixel or noise finer than three: at 64 pixels an autoencoder would
spend itself on that and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

SIDE = 64
"""Side of a picture in pixels."""

Y, X = (np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5) / SIDE

Rng = np.random.Generator


def colour(*channels: float) -> np.ndarray:
    """One sRGB colour, `[3]`."""
    return np.array(channels, np.float32)


def shade(base: np.ndarray, rng: Rng, spread: float = 0.04) -> np.ndarray:
    """`base` moved a little, together in brightness and apart in hue."""
    return np.clip(base + rng.normal(0, spread, 3) * 0.7 + rng.normal(0, spread) * 0.7, 0, 1).astype(np.float32)


def mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`first` where `share` `[SIDE, SIDE]` is 0 and `second` where it is 1."""
    return first + (second - first) * share[..., None]


def inside(distance: np.ndarray) -> np.ndarray:
    """1 where `distance` (in sides, positive inside) is positive, 0 outside, one pixel of transition."""
    return np.clip(distance * SIDE + 0.5, 0, 1).astype(np.float32)


def gradient(top: np.ndarray, bottom: np.ndarray, start: float = 0.0, end: float = 1.0) -> np.ndarray:
    """From `top` above `start` to `bottom` below `end`."""
    return mix(np.broadcast_to(top, (SIDE, SIDE, 3)), bottom, np.clip((Y - start) / (end - start), 0, 1))


@cache
def _noise_table(cells: int) -> np.ndarray:
    """64 fields of bicubic value noise with `cells` knots a side, `[64, SIDE, SIDE]` around 0.5."""
    rng = np.random.default_rng(cells)
    knots = rng.random((64, cells, cells)).astype(np.float32)
    return np.stack([np.array(Image.fromarray(k).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for k in knots])


def noise(cells: int, rng: Rng) -> np.ndarray:
    """One field of smooth noise, `[SIDE, SIDE]`, mostly within [0, 1]; turned and flipped at random."""
    field = np.rot90(_noise_table(cells)[rng.integers(64)], int(rng.integers(4)))
    return field if rng.random() < 0.5 else field[:, ::-1]


def grid(pictures: Sequence[np.ndarray], columns: int, enlarged: int = 2) -> Image.Image:
    """`pictures`, uint8 `[SIDE, SIDE, 3]` each, row by row, a white line between them."""
    rows = -(-len(pictures) // columns)
    step = SIDE + 1
    whole = np.full((rows * step - 1, columns * step - 1, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * step, number % columns * step
        whole[top : top + SIDE, left : left + SIDE] = picture
    sheet = Image.fromarray(whole)
    return sheet.resize((sheet.width * enlarged, sheet.height * enlarged), Image.Resampling.NEAREST)
