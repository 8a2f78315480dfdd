"""Tables as the macro `table` of `pieces.html` takes them: what a cell says, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers stand at its right edge, and whole sentences need it `wide`."""

    name: str
    numeric: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Cell:
    """What a cell says; `sort` decides its place in its stead, and `href` is where it leads."""

    text: str
    sort: float | str | None = None
    href: str | None = None


@dataclass(frozen=True)
class Rows:
    """A table."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def words(text: object) -> Cell:
    """A cell of text."""
    return Cell(str(text))


def whole(value: int) -> Cell:
    """A cell with a count."""
    return Cell(str(value), value)


def number(value: float | None, signed: bool = False) -> Cell:
    """A cell with a number to four places; empty where there is none."""
    if value is None:
        return Cell("")
    return Cell(f"{value:+.4f}" if signed else f"{value:.4f}", value)
