"""Slight alterations of a picture, after which it is still a copy: they set how near a copy must be.

Our choice: what a viewer would call the same picture, mirrored, a little closer or a little soft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from PIL import Image, ImageOps

CLOSER = 0.85
"""Share of each side that is left of a picture seen a little closer."""


def _closer(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    left, top = round(width * (1 - CLOSER) / 2), round(height * (1 - CLOSER) / 2)
    box = (left, top, width - left, height - top)
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box)


def _soft(picture: Image.Image) -> Image.Image:
    half = (max(1, picture.width // 2), max(1, picture.height // 2))
    return picture.resize(half, Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BILINEAR)


ALTERATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "closer": _closer,
    "soft": _soft,
}
"""By name; each keeps the picture's size."""
