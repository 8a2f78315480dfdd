"""Curves as inline SVG, drawn with the page's own colours so that they follow its light and dark theme.

Where the ticks stand is matplotlib's choice (`MaxNLocator`, `LogLocator`); everything else is a dozen SVG elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 36
"""Margins for the ticks' labels, in the same units."""
SMOOTHING = 0.9
"""Of the exponential moving average drawn over each curve: a loss of one step says little."""

Points = Sequence[tuple[float, float]]
Whiskers = Sequence[tuple[float, float, float]]
"""(x, low, high): how sure the value at x is."""


@dataclass(frozen=True)
class Band:
    """A named part of the x axis."""

    name: str
    start: float
    end: float


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    log: bool = False,
    bands: Sequence[Band] = (),
    unit: str = "step",
    marked: bool = False,
    whiskers: Mapping[str, Whiskers] | None = None,
) -> Markup:
    """One or more curves: the values faint, their moving average strong.

    Args:
        series: Name -> (x, y) in order. Values that cannot be drawn (not finite, or not positive with `log`) are gaps.
        log: Whether y is drawn on a logarithmic scale.
        bands: Stages, drawn as separate stretches; no average reaches across them.
        unit: What x counts.
        marked: The values are few and each counts: dots joined by straight lines, and no average.
        whiskers: Name -> intervals of its values, drawn as upright lines.

    Returns:
        An `<svg>` with the title and what it shows in words for those who cannot see it; a paragraph if there is
        nothing to draw.
    """
    drawable = {name: [(x, y) for x, y in points if _drawable(y, log)] for name, points in series.items()}
    drawable = {name: points for name, points in drawable.items() if points}
    if not drawable:
        return Markup("<p>{}: nothing to draw.</p>").format(title)
    xs = [x for points in drawable.values() for x, _ in points]
    sure = {name: its for name, its in (whiskers or {}).items() if name in drawable}
    ends = [end for its in sure.values() for _, *both in its for end in both if _drawable(end, log)]
    ys = [*ends, *(y for points in drawable.values() for _, y in points)]
    across = _scale(min([*xs, *(band.start for band in bands)]), max([*xs, *(band.end for band in bands)]), False)
    up = _scale(min(ys), max(ys), log)

    def place(x: float, y: float) -> str:
        return f"{LEFT + across(x) * (WIDTH - LEFT - RIGHT):.1f},{TOP + (1 - up(y)) * (HEIGHT - TOP - BOTTOM):.1f}"

    parts: list[Markup] = []
    for tick in _ticks(min(ys), max(ys), log):
        _, y_text = place(xs[0], tick).split(",")
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="tick" x="{}" y="{y}" dy="4" '
                   'text-anchor="end">{}</text>').format(LEFT, WIDTH - RIGHT, LEFT - 6, _number(tick), y=y_text)
        )  # fmt: skip
    for tick in _ticks(min(xs), max(xs), False):
        x_text, _ = place(tick, ys[0]).split(",")
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                x_text, HEIGHT - BOTTOM + 16, _number(tick)
            )
        )
    for band in bands:
        x_text, _ = place(band.start, ys[0]).split(",")
        parts.append(
            Markup('<line class="band" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="tick" x="{x}" y="{}" dx="3">'
                   "{}</text>").format(TOP, HEIGHT - BOTTOM, HEIGHT - 4, band.name, x=x_text)
        )  # fmt: skip
    described = []
    for index, (name, points) in enumerate(drawable.items()):
        for stretch in _stretches(points, bands):
            raw = " ".join(place(x, y) for x, y in stretch)
            smooth = raw if marked else " ".join(place(x, y) for x, y in _average(stretch))
            if not marked:
                parts.append(Markup('<polyline class="raw c{}" points="{}"/>').format(index, raw))
            parts.append(Markup('<polyline class="smooth c{}" points="{}"/>').format(index, smooth))
        parts.extend(_whisker(index, place(x, low), place(x, high)) for x, low, high in sure.get(name, ()))
        parts.extend(_dot(index, place(x, y)) for x, y in points if marked)
        described.append(f"{name} from {_number(points[0][1])} to {_number(points[-1][1])}")
    legend = Markup("").join(
        Markup('<span class="key c{}">{}</span>').format(index, name)
        for index, name in enumerate(drawable)
        if len(drawable) > 1 or not marked
    )
    words = f"{title} by {unit}: {'; '.join(described)}"
    return Markup(
        '<figure class="chart"><figcaption>{}{} {}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
        "{}</svg></figure>"
    ).format(title, " (logarithmic)" if log else "", legend, WIDTH, HEIGHT, escape(words), Markup("").join(parts))


def _whisker(index: int, low: str, high: str) -> Markup:
    (x, bottom), (_, top) = low.split(","), high.split(",")
    return Markup('<line class="whisker c{}" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(index, bottom, top, x=x)


def _dot(index: int, place: str) -> Markup:
    return Markup('<circle class="dot c{}" cx="{}" cy="{}" r="4"/>').format(index, *place.split(","))


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _scale(low: float, high: float, log: bool) -> Callable[[float], float]:
    """Maps [low, high] to [0, 1]."""
    if log:
        low, high = math.log10(low), math.log10(high)
    width = (high - low) or 1.0
    return lambda value: ((math.log10(value) if log else value) - low) / width


def _ticks(low: float, high: float, log: bool) -> list[float]:
    from matplotlib.ticker import LogLocator, MaxNLocator

    if low == high:
        return [low]
    locator = LogLocator(numticks=5) if log else MaxNLocator(5)
    inside = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return inside or [low, high]


def _stretches(points: Points, bands: Sequence[Band]) -> list[Points]:
    if not bands:
        return [points]
    cut = [[(x, y) for x, y in points if band.start <= x <= band.end] for band in bands]
    return [stretch for stretch in cut if stretch]


def _average(points: Points) -> Points:
    """The exponential moving average, corrected for its start (as Adam corrects its moments)."""
    total, weight, averaged = 0.0, 0.0, []
    for x, y in points:
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * y, SMOOTHING * weight + 1 - SMOOTHING
        averaged.append((x, total / weight))
    return averaged


def _number(value: float) -> str:
    return f"{value:.3g}"
