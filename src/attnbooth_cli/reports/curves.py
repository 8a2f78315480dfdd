"""Scores over training as a plot. matplotlib, imported when something is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

MEASURES = ("identity", "text", "drift")
WIDTH, HEIGHT, DPI = 8.0, 4.5, 110
"""Inches, and pixels an inch."""


def over_training(moments: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: identity, text and drift at every moment of training, with their 95 % intervals.

    Args:
        moments: In order; each with `name`, `stage`, and in `overall` a mean and interval for each measure it has.
    """
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(moments))
    for measure in MEASURES:
        found = [(place, moment["overall"].get(measure)) for place, moment in zip(places, moments, strict=True)]
        known = [(place, values) for place, values in found if values]
        if known:
            where = [place for place, _ in known]
            (line,) = axes.plot(where, [values["mean"] for _, values in known], marker="o", label=measure)
            sure = [(place, values) for place, values in known if values["low"] is not None]
            low, high = ([values[end] for _, values in sure] for end in ("low", "high"))
            axes.fill_between([place for place, _ in sure], low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    for place in places[1:]:
        if moments[place]["stage"] != moments[place - 1]["stage"]:
            axes.axvline(place - 0.5, color="0.7", linewidth=0.8, linestyle=":")
    axes.set_xticks(list(places), [moment["name"] for moment in moments], rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("cosine (drift: one minus it)")
    axes.grid(alpha=0.2)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
