"""Attention as pictures and as a page: sheets, film strips, comparisons, and the explorer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnbooth_cli.reports import page
from attnbooth_cli.reports.charts import line_chart
from attnbooth_cli.reports.heatmaps import labelled_grid, labelled_strip, overlay

FILM_FRAMES = 8
"""Of a film strip."""
SERIES = 4
"""Curves in one chart: as many colours as tell apart."""
EXPLORER_FRAMES = 25
EXPLORER_SIDE = 32
EXPLORER_BYTES = 2_000_000
"""How much the explorer of a page holds at most: frames, pixels of a map's longer side, and bytes before base64."""


@dataclass(frozen=True)
class Seen:
    """One view, as it is drawn.

    Attributes:
        words, buckets: All names, in order; those of them that are no words.
        telling: The words, the most telling first: [V], the category, then from the end of the prompt.
        steps: [s, w, y, x], a map of each word and step.
        timesteps: Of an existing picture, the noise at each step.
        first_step: The number of the first of `steps`.
        command: What makes the picture again, if anything does.
    """

    label: str
    picture: Image.Image
    words: tuple[str, ...]
    buckets: frozenset[str]
    telling: tuple[str, ...]
    steps: NDArray[np.float32]
    timesteps: tuple[int, ...]
    first_step: int = 1
    command: str | None = None

    @property
    def maps(self) -> NDArray[np.float32]:
        """[w, y, x], the mean over steps."""
        mean: NDArray[np.float32] = self.steps.mean(0)
        return mean

    def named(self, frame: int) -> str:
        """What one of `steps` is called."""
        return f"noise {self.timesteps[frame]}" if self.timesteps else f"step {self.first_step + frame}"

    @property
    def spoken(self) -> list[int]:
        """The places of the real words; of everything where there are none."""
        return [i for i, word in enumerate(self.words) if word not in self.buckets] or list(range(len(self.words)))


def peak(views: Sequence[Seen]) -> float:
    """The value of the brightest colour, one for all views and words, so that levels can be compared. The buckets'
    is left out of it: theirs would leave everything else dark."""
    return max(float(view.maps[view.spoken].max()) for view in views)


def overlays(view: Seen, top: float) -> dict[str, Image.Image]:
    """Every word's map over the picture."""
    maps = view.maps
    return {view.words[i]: overlay(view.picture, maps[i], top) for i in view.spoken}


def sheet(view: Seen, top: float) -> Image.Image:
    """The picture and its overlays side by side."""
    return labelled_strip({"picture": view.picture, **overlays(view, top)})


def film(view: Seen) -> Image.Image:
    """A row a word: its map at moments from the first step to the last, all on one scale."""
    frames = np.unique(np.linspace(0, len(view.steps) - 1, FILM_FRAMES).round().astype(int))
    top = float(view.steps[frames][:, view.spoken].max())
    rows = {
        view.words[i]: [(view.named(frame), overlay(view.picture, view.steps[frame, i], top)) for frame in frames]
        for i in view.spoken
    }
    return labelled_grid(rows)


def comparison(views: Sequence[Seen], main: Seen, top: float) -> Image.Image:
    """A row a view: its picture and its maps, each word below the same word of the main view."""
    columns = [main.words[i] for i in main.spoken]
    rows: dict[str, list[tuple[str, Image.Image | None]]] = {}
    for view in views:
        its = overlays(view, top)
        placed = _aligned(columns, list(its))
        rows[view.label] = [("picture", view.picture), *((word, its[word]) if word else ("", None) for word in placed)]
    return labelled_grid(rows)


def _aligned(columns: Sequence[str], words: Sequence[str]) -> list[str]:
    """Which of the words stands in each column: the same word; else, in order, one that no column has; else none."""
    free = [word for word in words if word not in columns]
    placed = [column if column in words else free.pop(0) if free else "" for column in columns]
    return [*placed, *free]


def write_page(path: Path, prompt: str, views: Sequence[Seen], main: Seen, report: Mapping[str, Any]) -> Path:
    """The page: explorer, numbers, film strip and comparison.

    Args:
        report: The JSON document of the inspection.

    Raises:
        ResourceError: it cannot be written.
    """
    top = peak(views)
    shares = {
        word: [
            (main.timesteps[k] if main.timesteps else main.first_step + k, float(value))
            for k, value in enumerate(main.steps[:, main.words.index(word)].mean((1, 2)))
        ]
        for word in main.telling[:SERIES]
    }
    unit = "noise level" if main.timesteps else "step"
    return page.write_page(
        path,
        "attention.html",
        ("explorer.js",),
        title=f"Where “{prompt}” looks",
        report=report,
        main=main.label,
        explorer={"peak": top, "main": views.index(main), "views": [_explored(view, len(views)) for view in views]},
        sheet=page.embedded(sheet(main, top), 1600),
        film=page.embedded(film(main), 1600),
        comparison=page.embedded(comparison(views, main, top), 1800) if len(views) > 1 else None,
        shares=line_chart(f"Share of attention, the {SERIES} most telling words", shares, unit=unit, marked=True),
        unit=unit,
    )


def _explored(view: Seen, views: int) -> dict[str, Any]:
    """A view for the explorer: the picture, and bytes of every word's map at every frame, each word on its own scale.

    A frame is one step, or the mean of several where there are more than the page has room for.
    """
    _, words, height, width = view.steps.shape
    smaller = max(1, -(-max(height, width) // EXPLORER_SIDE))
    size = (-(-height // smaller), -(-width // smaller))
    affordable = EXPLORER_BYTES // (views * words * size[0] * size[1]) - 1
    parts = np.array_split(np.arange(len(view.steps)), max(1, min(len(view.steps), EXPLORER_FRAMES, affordable)))
    frames = np.stack([view.maps, *(view.steps[part].mean(0) for part in parts)])  # [f, w, y, x]
    frames = np.stack([[_shrunk(its, size) for its in frame] for frame in frames])
    tops = frames.max((0, 2, 3))
    scaled = (frames / np.maximum(tops, 1e-12)[None, :, None, None] * 255).round().astype(np.uint8)
    return {
        "label": view.label,
        "command": view.command,
        "picture": page.embedded(view.picture),
        "height": size[0],
        "width": size[1],
        "frames": ["all of them", *(_between(view, part) for part in parts)],
        "words": [
            {
                "text": word,
                "chosen": word == view.telling[0] if view.telling else i == 0,
                "top": float(tops[i]),
                "shares": [float(value) for value in frames[:, i].mean((1, 2))],
                "bytes": base64.b64encode(scaled[:, i].tobytes()).decode(),
            }
            for i, word in enumerate(view.words)
        ],
    }


def _between(view: Seen, part: NDArray[np.int_]) -> str:
    first, last = view.named(int(part[0])), view.named(int(part[-1]))
    return first if first == last else f"{first} to {last.rpartition(' ')[2]}"


def _shrunk(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map at a smaller size, by the mean of what each position covers."""
    if values.shape == size:
        return values
    shrunk: NDArray[np.float32] = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BOX))
    return shrunk
