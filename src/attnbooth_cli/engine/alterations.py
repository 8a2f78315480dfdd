"""What is still a copy of a picture: how near it must be for a judge, and that it is laid out alike.

Our choice: what a viewer would call the same picture, mirrored, a little closer or a little soft. A judge alone cannot
tell: to it the same thing in another scene is nearer than the same picture a little closer. So a copy must also have
light and colour where the picture has them, which another picture of the thing has not (docs/evaluation.md, "Copies").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

CLOSER = 0.85
"""Share of each side that is left of a picture seen a little closer."""


GRID = 16
"""Cells a side in which a picture's layout is described."""
SAME_LAYOUT = 0.95
"""Correlation of two layouts from which they are one."""
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)
"""How close a copy is looked for, as shares of each side."""
LARGEST = 256
"""Pixels of the shorter side from which a picture is described; a cell has enough of them."""


def layout(picture: Image.Image) -> NDArray[np.float64]:
    """Where a picture has light and colour: a unit vector [3 GRID^2] whose channels have mean zero."""
    cells = np.asarray(picture.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX), np.float64).reshape(-1, 3)
    centred = (cells - cells.mean(0)).ravel()
    found: NDArray[np.float64] = centred / max(float(np.linalg.norm(centred)), 1e-9)
    return found


def layouts_of_copies(picture: Image.Image) -> NDArray[np.float64]:
    """The layouts that copies of a picture may have, [a, 3 GRID^2]: closer and closer, and mirrored; of one that is not
    square, stretched to a square or cut to one, as training shows it."""
    size = [max(1, round(side * min(1.0, LARGEST / min(picture.size)))) for side in picture.size]
    smaller = picture if tuple(size) == picture.size else picture.resize((size[0], size[1]), Image.Resampling.BOX)
    closer = [_closer(shown, share) for shown in (smaller, *_squares(smaller)) for share in SCALES]
    return np.stack([layout(its) for its in (*closer, *map(ImageOps.mirror, closer))])


def _squares(picture: Image.Image) -> Iterator[Image.Image]:
    """The squares along the longer side, half a cell apart; none of a picture that is square."""
    (width, height), side = picture.size, min(picture.size)
    count = math.ceil(2 * GRID * (max(picture.size) / side - 1)) + 1
    for step in range(count if width != height else 0):
        left, top = (round((its - side) * step / (count - 1)) for its in (width, height))
        yield picture.crop((left, top, left + side, top + side))


def _closer(picture: Image.Image, share: float = CLOSER) -> Image.Image:
    width, height = picture.size
    left, top = round(width * (1 - share) / 2), round(height * (1 - share) / 2)
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
