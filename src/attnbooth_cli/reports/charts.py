"""Curves as inline SVG, drawn with the page's own colours so that they follow its light and dark theme.

Where the ticks stand is matplotlib's choice (`MaxNLocator`, `LogLocator`); everything else is a dozen SVG elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from markupsafe import Markup

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 36
"""Margins for the ticks' labels, in the same units."""
SMOOTHING = 0.9
"""Of the exponential moving average drawn over each curve: a loss of one step says little."""
COLOURS = 4
"""How many the style sheet has."""
LEAST_SHARE = 0.14
"""Of the width, which a band gets however short it is: its name and its last tick must fit."""
TICK_ROOM, LETTER = 40.0, 6.2
"""The width of a tick's label with some air, and of a letter."""

Points = Sequence[tuple[float, float]]
Whiskers = Sequence[tuple[float, float, float]]
"""(x, low, high): how sure the value at x is."""


@dataclass(frozen=True)
class Band:
    """A named part of the x axis, without its start and with its end; its ticks count from its start."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Stretch:
    """A band and where it stands in the picture; a nameless one is the whole axis."""

    band: Band
    left: float
    right: float
    first: bool

    def holds(self, x: float) -> bool:
        """Whether x is in it; the start of the first band is."""
        return self.band.start < x <= self.band.end or (self.first and x == self.band.start)

    def place(self, x: float) -> float:
        """Where x stands."""
        return self.left + _scale(self.band.start, self.band.end, False)(x) * (self.right - self.left)


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
        bands: Stages in order, drawn as separate stretches, each with a scale of its own: a short one would vanish
            beside a long one. Their ticks count from their starts, and no average reaches across them.
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
    axis = _axis(bands) if bands else [Stretch(Band("", min(xs), max(xs)), LEFT, WIDTH - RIGHT, True)]
    up = _scale(min(ys), max(ys), log)

    def height(y: float) -> float:
        return TOP + (1 - up(y)) * (HEIGHT - TOP - BOTTOM)

    parts: list[Markup] = []
    for tick in _ticks(min(ys), max(ys), log):
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<text class="tick" x="{}" y="{y:.1f}" dy="4" text-anchor="end">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, LEFT - 6, _number(tick), y=height(tick))
        )
    for stretch in axis:
        parts.extend(_labels(stretch, named=bool(bands)))
    described = []
    for index, (name, points) in enumerate(drawable.items()):
        colour = index % COLOURS
        for stretch in axis:
            held = [(x, y) for x, y in points if stretch.holds(x)]
            raw, smooth = _columns(stretch, held), _columns(stretch, held if marked else _average(held))
            for kind, placed in (("raw", raw), ("smooth", smooth))[marked:]:
                corners = " ".join(f"{x:.1f},{height(y):.1f}" for x, y in placed)
                parts.append(Markup('<polyline class="{} c{}" points="{}"/>').format(kind, colour, corners))
            for x, low, high in sure.get(name, ()):
                if stretch.holds(x):
                    parts.append(_whisker(colour, stretch.place(x), height(low), height(high)))
            parts.extend(_dot(colour, stretch.place(x), height(y)) for x, y in held if marked)
        described.append(f"{name} from {_number(points[0][1])} to {_number(points[-1][1])}")
    legend = Markup("").join(
        Markup('<span class="key c{}">{}</span>').format(index % COLOURS, name)
        for index, name in enumerate(drawable)
        if len(drawable) > 1 or not marked
    )
    words = f"{title} by {unit}: {'; '.join(described)}"
    return Markup(
        '<figure class="chart"><figcaption>{}{} {}</figcaption><div class="scroll" role="region" tabindex="0" '
        'aria-label="{}"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></div></figure>'
    ).format(title, " (logarithmic)" if log else "", legend, title, WIDTH, HEIGHT, words, Markup("").join(parts))


def _axis(bands: Sequence[Band]) -> list[Stretch]:
    """Shares the width: by the square root of a band's length, so that 60 steps can be read beside 500."""
    roots = [math.sqrt(max(band.end - band.start, 0.0)) for band in bands]
    least = min(LEAST_SHARE, 1 / len(bands)) * (sum(roots) or 1.0)
    weights = [max(root, least) for root in roots]
    places = [float(LEFT)]
    for weight in weights:
        places.append(places[-1] + weight / sum(weights) * (WIDTH - LEFT - RIGHT))
    return [
        Stretch(band, left, right, index == 0)
        for index, (band, (left, right)) in enumerate(zip(bands, pairwise(places), strict=True))
    ]


def _labels(stretch: Stretch, named: bool) -> Iterator[Markup]:
    """The ticks below a stretch, and its name and dividing line."""
    start, end = stretch.band.start, stretch.band.end
    counted_from = start if named else 0.0
    wanted = max(1, int((stretch.right - stretch.left) / TICK_ROOM / 1.5))
    whole = float(start).is_integer() and float(end).is_integer()
    ticks = _ticks(start - counted_from, end - counted_from, False, min(wanted, 5), whole=whole)
    if named:  # the end of a stage is always said, and its start, which is zero, never
        near = TICK_ROOM * 0.8
        inside = [tick for tick in ticks if near < stretch.place(tick + start) - stretch.left]
        last = stretch.right - TICK_ROOM * 0.5
        ticks = [*(tick for tick in inside if stretch.place(tick + start) < last - near), end - start]
    for tick in ticks:
        yield Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
            stretch.place(tick + counted_from) - (2 if named and tick == ticks[-1] else 0),
            HEIGHT - BOTTOM + 16,
            "end" if named and tick == ticks[-1] else "middle",
            _number(tick),
        )
    if named:
        fitting = max(1, int((stretch.right - stretch.left - 6) / LETTER))
        name = stretch.band.name if len(stretch.band.name) <= fitting else stretch.band.name[: fitting - 1] + "\u2026"
        yield Markup(
            '<line class="band" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/><text class="tick" x="{x:.1f}" y="{}" '
            'dx="3">{}</text>'
        ).format(TOP, HEIGHT - BOTTOM, HEIGHT - 4, name, x=stretch.left)


def _columns(stretch: Stretch, points: Points) -> Iterator[tuple[float, float]]:
    """(place, y) of points in order; where several share a column, its lowest and highest, which is all one would see
    of them: ten thousand steps stay a small page."""
    for _, column in groupby(points, key=lambda point: round(stretch.place(point[0]))):
        held = list(column)
        extremes = {min(held, key=lambda point: point[1]), max(held, key=lambda point: point[1])}
        for x, y in sorted(extremes):
            yield stretch.place(x), y


def _whisker(colour: int, x: float, low: float, high: float) -> Markup:
    line = Markup('<line class="whisker c{}" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
    return line.format(colour, low, high, x=x)


def _dot(colour: int, x: float, y: float) -> Markup:
    return Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(colour, x, y)


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _scale(low: float, high: float, log: bool) -> Callable[[float], float]:
    """Maps [low, high] to [0, 1]."""
    if log:
        low, high = math.log10(low), math.log10(high)
    width = (high - low) or 1.0
    return lambda value: ((math.log10(value) if log else value) - low) / width


def _ticks(low: float, high: float, log: bool, most: int = 5, *, whole: bool = False) -> list[float]:
    from matplotlib.ticker import LogLocator, MaxNLocator

    if low == high:
        return [low]
    inside: list[float] = []
    for locator in (LogLocator(numticks=5), MaxNLocator(most)) if log else (MaxNLocator(most, integer=whole),):
        inside = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(inside) > 1:  # a decade may have one power of ten or none in it
            break
    return inside or [low, high]


def _average(points: Points) -> Points:
    """The exponential moving average, corrected for its start (as Adam corrects its moments)."""
    total, weight, averaged = 0.0, 0.0, []
    for x, y in points:
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * y, SMOOTHING * weight + 1 - SMOOTHING
        averaged.append((x, total / weight))
    return averaged


def _number(value: float) -> str:
    return str(round(value)) if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"
