"""Curves as SVG: what is drawn stands where its numbers say."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest

from attnbooth_cli.reports.charts import HEIGHT, LEFT, LETTER, RIGHT, WIDTH, Band, line_chart

STAGES = (Band("embedding", 0, 60), Band("attention", 60, 160), Band("unet", 160, 660))


def ticks(svg: str) -> list[tuple[float, str]]:
    """Place and label of everything below the axis, ticks and names, from left to right."""
    found = re.findall(r'<text class="tick" x="([\d.]+)" y="(\d+)"[^>]*>([^<]*)</text>', svg)
    return sorted((float(x), label) for x, y, label in found if int(y) >= HEIGHT - 30)


def corners(svg: str, kind: str = "raw") -> list[list[tuple[float, float]]]:
    """The points of every curve of a kind."""
    lines = re.findall(rf'<polyline class="{kind} c\d" points="([^"]*)"', svg)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]  # type: ignore[misc]


@pytest.mark.parametrize("lengths", [(60, 100, 500), (2, 8, 2), (1, 1, 6100), (500, 1, 1)])
def test_names_and_ticks_of_bands_never_overlap(lengths: tuple[int, ...]) -> None:
    start, bands = 0, []
    for name, length in zip(("embedding", "attention", "unet"), lengths, strict=True):
        bands.append(Band(name, start, start + length))
        start += length
    svg = str(line_chart("Loss", {"loss": [(x, 1 / x) for x in range(1, start + 1)]}, bands=bands))
    below = re.findall(r'<text class="tick" x="([\d.]+)" y="(\d+)"( text-anchor="(\w+)")?( dx="3")?>([^<]*)<', svg)
    for row in (HEIGHT - 4, HEIGHT - 20):
        spans = []
        for x, y, _, anchor, _, label in below:
            if int(y) == row:
                width = LETTER * len(label)
                left = float(x) - {"middle": width / 2, "end": width}.get(anchor, -3)
                spans.append((left, left + width))
        spans.sort()
        assert len(spans) >= 3
        assert all(end < begin for (_, end), (begin, _) in pairwise(spans))
        assert all(left >= LEFT - 10 and right <= WIDTH for left, right in spans)


def test_ticks_are_true_in_bands_of_any_width() -> None:
    """A tick that says 50 in the second band stands where that stage's fiftieth step is drawn."""
    points = [(float(x), 1.0 + x % 2) for x in range(1, 661)]
    svg = str(line_chart("Loss", {"loss": points}, bands=STAGES))
    curves = corners(svg)
    assert len(curves) == len(STAGES)
    labels = ticks(svg)
    for curve, band in zip(curves, STAGES, strict=True):
        place = {step: curve[step - 1][0] for step in range(1, 61)}
        inside = [(x, int(label)) for x, label in labels if label.isdigit() and curve[0][0] < x <= curve[-1][0]]
        assert inside
        assert inside[-1][1] == band.end - band.start
        for x, step in inside[:-1]:
            if step in place and len(curve) == band.end - band.start:
                assert x == pytest.approx(place[step], abs=0.2)


def test_a_step_belongs_to_one_band() -> None:
    points = [(float(x), float(x)) for x in range(1, 661)]
    curves = corners(str(line_chart("Loss", {"loss": points}, bands=STAGES)), "smooth")
    assert curves[0][0][1] > curves[0][-1][1]
    assert curves[1][0][1] > curves[1][-1][1]
    assert sum(map(len, curves)) <= 660
    first = [(x, y) for x, y in corners(str(line_chart("Loss", {"loss": points[:160]}, bands=STAGES[:2])))[1]]
    assert len(first) == 100


def test_ten_thousand_steps_are_few_corners_and_keep_their_extremes() -> None:
    generator = random.Random(0)
    points = [(float(x), generator.random()) for x in range(1, 10_001)]
    points[4321] = (4322.0, 7.5)
    (curve,) = corners(str(line_chart("Loss", {"loss": points})))
    assert len(curve) <= 2 * (WIDTH - LEFT - RIGHT + 1)
    highest = min(curve, key=lambda point: point[1])
    assert highest[1] == pytest.approx(12.0)  # the top of the frame
    assert highest[0] == pytest.approx(LEFT + 4321 / 9999 * (WIDTH - LEFT - RIGHT), abs=0.6)


def test_what_cannot_be_drawn_is_a_gap_and_nothing_at_all_is_said() -> None:
    gap = float("nan")
    svg = str(line_chart("Loss", {"loss": [(1, 1.0), (2, gap), (3, 2.0)], "none": [(1, gap)]}))
    assert [len(curve) for curve in corners(svg)] == [2]
    assert "none" not in svg
    assert str(line_chart("Loss", {"loss": [(1, 0.0)]}, log=True)) == "<p>Loss: nothing to draw.</p>"


def test_words_are_escaped() -> None:
    svg = str(line_chart('<b>"T"</b>', {"<i>": [(1, 1.0), (2, 2.0)]}, bands=[Band("<u>", 0, 2)]))
    assert not re.search(r"<[biu]>", svg)
