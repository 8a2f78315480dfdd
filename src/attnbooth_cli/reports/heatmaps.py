"""Attention maps as pictures. Pillow and numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

MIN_SIDE = 192
"""Small pictures are enlarged by a whole factor so that maps and labels can be read."""
LABEL_HEIGHT = 22
COLOURS = ("#08081a", "#b63679", "#fcfdbf")
"""Low, middle and high attention."""


def overlay(picture: Image.Image, values: NDArray[np.float32], peak: float) -> Image.Image:
    """A map over its picture.

    Args:
        values: [y, x], non-negative, at any resolution.
        peak: The value of the brightest colour; the same for all words, so that levels can be compared.
    """
    factor = max(1, -(-MIN_SIDE // min(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    grey = Image.fromarray(np.clip(values / max(peak, 1e-12) * 255, 0, 255).astype(np.uint8))
    heat = ImageOps.colorize(grey.resize(size, Image.Resampling.BICUBIC), COLOURS[0], COLOURS[2], mid=COLOURS[1])
    return Image.blend(picture.resize(size, Image.Resampling.NEAREST), heat, 0.65)


def labelled_strip(pictures: Mapping[str, Image.Image], columns: int = 6) -> Image.Image:
    """Pictures in rows, each under its label; all are brought to the size of the largest."""
    width = max(picture.width for picture in pictures.values())
    height = max(picture.height for picture in pictures.values())
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    gap = 6
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + LABEL_HEIGHT + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, (label, picture) in enumerate(pictures.items()):
        row, column = divmod(index, columns)
        x, y = column * (width + gap), row * (height + LABEL_HEIGHT + gap)
        draw.text((x + 2, y + 3), label[:40], fill="black", font=font)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y + LABEL_HEIGHT))
    return sheet
