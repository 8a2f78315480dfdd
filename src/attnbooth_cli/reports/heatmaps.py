"""Attention maps as pictures. Pillow and numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

MIN_SIDE = 192
"""Small pictures are enlarged by a whole factor so that maps and labels can be read."""
LABEL_HEIGHT = 22
GAP = 6
"""Pixels between pictures."""
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
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + LABEL_HEIGHT + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, (label, picture) in enumerate(pictures.items()):
        row, column = divmod(index, columns)
        x, y = column * (width + GAP), row * (height + LABEL_HEIGHT + GAP)
        draw.text((x + 2, y + 3), label[:40], fill="black", font=font)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y + LABEL_HEIGHT))
    return sheet


def labelled_grid(rows: Mapping[str, Sequence[tuple[str, Image.Image | None]]]) -> Image.Image:
    """A row of labelled pictures under each name; all are brought to the size of the largest, and None leaves a gap."""
    pictures = [picture for row in rows.values() for _, picture in row if picture]
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    columns = max(len(row) for row in rows.values())
    row_height = 2 * LABEL_HEIGHT + height + GAP
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * row_height - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, row) in enumerate(rows.items()):
        top = number * row_height
        draw.text((2, top + 3), name[:80], fill="black", font=ImageFont.load_default(16))
        for column, (label, picture) in enumerate(row):
            x, y = column * (width + GAP), top + LABEL_HEIGHT
            draw.text((x + 2, y + 3), label[:40], fill="#555555", font=ImageFont.load_default(14))
            if picture:
                sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y + LABEL_HEIGHT))
    return sheet
