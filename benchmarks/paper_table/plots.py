"""The page's pictures: identity against text, what schedules cost, and a sheet of what the methods draw."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnbooth_cli.engine import scores
from benchmarks.paper_table.measures import Results, by_concept, family
from benchmarks.paper_table.page import by_name, schedule
from benchmarks.paper_table.run import PROMPTS, asked_for
from benchmarks.paper_table.units import (
    LADDER,
    PUBLISHED,
    SHOWN,
    Unit,
    concepts,
    rates,
    result,
    searched_on,
    strip_of,
    table_units,
)

SPAN = 0.1
"""Of a cosine's axis at the least, so that differences of thousandths look like what they are."""

LEAST_TEXT = 0.1
"""What has less follows no prompt, and is off the plot of rates."""

LEFT, TOP = 2.4, 0.4
"""Inches of the sheet for the methods' names, and for what the prompts ask for."""


def scatter(found: Results, best: Mapping[str, float]) -> bytes:
    """Identity against text of every row with intervals over concepts, a PNG; squares are at the published rates."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure((10, 6.5), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(label for label, _ in found))
    for (label, factor), rows in found.items():
        number = names.index(label)
        values = [np.array([its[measure] for its in rows.values()]) for measure in ("text", "identity")]
        (x, y), errors = (float(its.mean()) for its in values), [_around(its) for its in values]
        chosen = factor == best[family(label)]
        axes.errorbar(
            x, y, xerr=errors[0], yerr=errors[1], fmt="o" if chosen else "s", color=colormaps["tab20"](number % 20),
            markersize=7, elinewidth=0.7, fillstyle="full" if chosen else "none",
            label=f"{number + 1} {label}" if chosen else None,
        )  # fmt: skip
        axes.annotate(str(number + 1), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
    return _plane(figure, axes, by_concept(found))


def rate_curves(work: Path, best: Mapping[str, float]) -> bytes:
    """Identity against text of each method at every rate tried on the search's first concept, each with its factor; the
    rates it has in the table are rings around their dots. A PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    first = searched_on()[0]
    figure = Figure((10, 5.5), layout="constrained")
    axes = figure.add_subplot()
    shown: list[dict[str, Any]] = []
    for number, (method, chosen) in enumerate(best.items()):
        tried = {factor: result(work, Unit(method, factor, "tuning", first)) for factor in LADDER}
        rows = {factor: its for factor, its in tried.items() if its is not None}  # without those that diverged
        shown += rows.values()
        color = colormaps["tab10"](number)
        x, y = ([its[measure] for its in rows.values()] for measure in ("text", "identity"))
        axes.plot(x, y, "-o", color=color, markersize=3, linewidth=0.8)
        for factor, its in rows.items():
            axes.annotate(
                f"{factor:g}", (its["text"], its["identity"]), textcoords="offset points", xytext=(3, 3), fontsize=6,
                color=color, annotation_clip=True,
            )  # fmt: skip
        its = rows[chosen]
        axes.plot(
            its["text"], its["identity"], "o", color=color, fillstyle="none", markersize=9 + number,
            label=f"{method} {rates(chosen)}",
        )  # fmt: skip
    axes.set_xlim(left=LEAST_TEXT)
    return _plane(figure, axes, shown[:1])


def fast_curve(work: Path, todo: Sequence[Unit]) -> bytes:
    """Identity and text against the samples seen, each schedule a point, a PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = by_name(work, todo, schedule)
    figure = Figure((10, 4.5), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), ("identity", "text"), strict=True):
        for name, its in rows.items():
            x, y = its[0]["samples"], float(np.mean([found[measure] for found in its]))
            number = list(rows).index(name) + 1
            (dot,) = axes.plot(x, y, "o", markersize=5, color=colormaps["tab20"](number - 1))
            dot.set_label(f"{number} {name}" if measure == "identity" else None)
            axes.annotate(str(number), (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7)
        low, high = axes.get_ylim()
        middle, half = (low + high) / 2, max(high - low, SPAN) / 2
        axes.set_ylim(middle - half, middle + half)
        axes.set_xlabel("samples seen in training")
        axes.set_ylabel(measure)
        axes.grid(alpha=0.2)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _png(figure)


def sheet(work: Path, best: Mapping[str, float]) -> bytes:
    """The first picture of some prompts in each row of the table at best rates, never picked; the true ones above, the
    pictures that were trained on below. A PNG."""
    from matplotlib.figure import Figure

    first = concepts("test")[0]
    any_unit = Unit("attndreambooth", PUBLISHED, "test", first)
    truth, learned_from = any_unit.truth, sorted(any_unit.images.iterdir())
    rows: dict[str, list[Image.Image]] = {
        "true pictures": [Image.open(truth / f"{number + 1}.png").convert("RGB") for number in SHOWN],
    }
    at_best = [unit for unit in table_units(best) if unit.factor == best[family(unit.method)]]
    for unit in [unit for unit in at_best if unit.concept == first]:
        strip = strip_of(work, unit)
        if strip.exists():
            picture: Image.Image = Image.open(strip)
            side = picture.height
            rows[unit.label] = [picture.crop((k * side, 0, (k + 1) * side, side)) for k in range(len(SHOWN))]
    rows["training pictures"] = [Image.open(path).convert("RGB") for path in learned_from[: len(SHOWN)]]
    figure = Figure((LEFT + 0.9 * len(SHOWN), TOP + 0.9 * len(rows)))
    grid = figure.subplots(len(rows), len(SHOWN), squeeze=False)
    for (name, pictures), cells in zip(rows.items(), grid, strict=True):
        for picture, axes in zip(pictures, cells, strict=False):
            axes.imshow(np.asarray(picture), interpolation="nearest")
        for axes in cells:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for number, axes in zip(SHOWN, grid[0], strict=True):
        axes.set_title(_gist(PROMPTS[number]), fontsize=7)
    left, top = LEFT / figure.get_figwidth(), 1 - TOP / figure.get_figheight()
    figure.subplots_adjust(left=left, right=0.995, bottom=0.005, top=top, wspace=0.04, hspace=0.04)
    return _png(figure)


def _plane(figure: Any, axes: Any, per_concept: Sequence[Mapping[str, Any]]) -> bytes:
    """A plot of identity against text, with the true pictures and the untuned model added; a PNG."""
    for name, marker, label in (("truth", "*", "the true pictures"), ("untuned", "X", "the untuned model")):
        x, y = (np.mean([its[name][measure] for its in per_concept]) for measure in ("text", "identity"))
        axes.plot(x, y, marker, color="black", markersize=10, label=label)
    axes.set_xlabel("text")
    axes.set_ylabel("identity")
    axes.grid(alpha=0.2)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _png(figure)


def _gist(prompt: str) -> str:
    """What a prompt asks for, in a column's width."""
    asked = asked_for(prompt)
    style = None if asked["style"] == "photo" else asked["style"]
    return ",\n".join(filter(None, (asked["colour"], style, asked["scene"])))


def _around(values: np.ndarray) -> Any:
    """The mean's 95 % interval as error bars are given, or None."""
    interval = scores.bootstrap(values)
    return None if interval is None else [[values.mean() - interval.low], [interval.high - values.mean()]]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
