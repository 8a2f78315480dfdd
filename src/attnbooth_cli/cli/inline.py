"""Pictures in the terminal, where it can show them; everywhere else nothing is drawn.

textual-image draws. By itself it would ask the terminal while it is imported, and take the first key that was typed for
the answer; so it is imported where it cannot ask, and `terminal` does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbooth_cli.cli.console import Console

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import RenderableType

    from attnbooth_cli.cli.terminal import Graphics

SWITCH = "ATTNBOOTH_INLINE"
"""0 switches pictures off."""
MOST = 4
"""Pictures at once, side by side."""
LEAST_COLUMNS = 16
"""Of a picture; smaller ones, such as the bundled model's on a fine screen, are enlarged."""


def show_pictures(console: Console, paths: Sequence[Path | str]) -> None:
    """Draws the first few pictures side by side, if stdout is a terminal that can; never fails."""
    if not paths or not _welcome(console):
        return
    try:
        from attnbooth_cli.cli.terminal import graphics

        place = graphics()
        if place is not None:
            _draw(_side_by_side(paths[:MOST]), len(paths[:MOST]), place)
    except Exception as error:  # a picture is an extra: its file is there, and its path was printed
        if console.verbose:
            console.message(f"no picture here: {type(error).__name__}: {error}")


def _welcome(console: Console) -> bool:
    off = os.environ.get(SWITCH, "").strip().lower() in ("0", "no", "off", "false")
    return console.interactive and sys.stdout.isatty() and not off


def _side_by_side(paths: Sequence[Path | str]) -> Image.Image:
    from PIL import Image

    from attnbooth_cli.reports.grids import contact_sheet

    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    return contact_sheet(pictures, columns=len(pictures)) if len(pictures) > 1 else pictures[0]


def _draw(picture: Image.Image, count: int, place: Graphics) -> None:
    from rich.console import Console as RichConsole

    columns, rows = fitted_size(picture.size, count, place)
    terminal = RichConsole(
        file=sys.stdout,
        force_terminal=True,
        color_system="truecolor",  # the colour of a kitty picture's characters is its number
        width=place.columns,
        height=place.rows,
    )
    terminal.print(_renderable(_enlarged(picture, columns * place.cell[0]), columns, rows, place), crop=False, end="")
    sys.stdout.flush()


def fitted_size(size: tuple[int, int], count: int, place: Graphics) -> tuple[int, int]:
    """Columns and rows for a sheet of `count` pictures in a row: its own size, within the window, in proportion."""
    wide, high = size[0] / place.cell[0], size[1] / place.cell[1]
    scale = max(1.0, count * LEAST_COLUMNS / wide)
    most_rows = max(1, place.rows - 2)
    columns = max(1, int(wide * min(scale, place.columns / wide, most_rows / high)))
    return columns, min(most_rows, max(1, round(columns * high / wide)))


def _enlarged(picture: Image.Image, width: int) -> Image.Image:
    """By a whole factor first, so that small pixels stay sharp."""
    from PIL import Image

    factor = width // picture.width
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST) if factor > 1 else picture


def _renderable(picture: Image.Image, columns: int, rows: int, place: Graphics) -> RenderableType:
    stdout, sys.__stdout__ = sys.__stdout__, None  # type: ignore[misc]
    try:
        from textual_image import _terminal
        from textual_image.renderable import SixelImage, TGPImage
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]
    # Its own measure would be another question to the terminal.
    _terminal.get_cell_size._result = _terminal.CellSize(*place.cell)  # type: ignore[attr-defined]
    return (SixelImage if place.protocol == "sixel" else TGPImage)(picture, columns, rows)
