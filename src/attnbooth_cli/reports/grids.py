"""Contact sheets: pictures side by side on one. Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

GAP = 4
"""Pixels between pictures."""
MIN_SIDE = 128
"""Smaller pictures are enlarged by a whole factor, so that a sheet of 64-pixel pictures can be looked at."""


def contact_sheet(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures of one size in rows; about as many columns as rows unless told."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    factor = max(1, -(-MIN_SIDE // min(pictures[0].size)))
    width, height = pictures[0].width * factor, pictures[0].height * factor
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        enlarged = picture.resize((width, height), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (column * (width + GAP), row * (height + GAP)))
    return sheet
