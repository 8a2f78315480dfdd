"""The arithmetic of a study, against published and known values."""

from __future__ import annotations

import numpy as np
import pytest

from attnbooth_cli.engine.preference import pigeonhole_interval, preference, wilson_interval


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(count: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(total - count, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_people_of_one_mind_each_are_as_many_answers_as_people() -> None:
    """Twenty people, half of whom always choose B: the share is Binomial(20, 1/2) / 20, however many questions."""
    chosen = np.repeat(np.arange(20)[:, None] < 10, 24, axis=1)
    assert pigeonhole_interval(chosen) == pytest.approx((0.3, 0.7))
    assert pigeonhole_interval(chosen.T) == pytest.approx((0.3, 0.7))  # and the same of questions
    found = preference(chosen)
    assert (found.share, found.chosen, found.answers, found.by) == (0.5, 240, 480, "pigeonhole")
    assert (found.low, found.high) == pytest.approx((0.3, 0.7))


def test_the_spread_of_independent_answers_is_three_times_a_sampling() -> None:
    """Owen 2007: where answers are independent, the bootstrap's variance is about three times the true one."""
    chosen = np.random.default_rng(0).random((40, 40)) < 0.5
    low, high = pigeonhole_interval(chosen)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(3 * 0.25 / chosen.size), rel=0.1)


def test_unanimous_answers_are_not_certain() -> None:
    found = preference(np.ones((2, 6), bool))
    assert (found.by, found.share, found.high) == ("wilson", 1, pytest.approx(1))
    assert found.low == pytest.approx(wilson_interval(12, 12)[0])
    assert 0.7 < found.low < 0.8


def test_the_wider_is_taken() -> None:
    generator = np.random.default_rng(1)
    for people, questions in ((1, 1), (1, 24), (3, 5), (30, 24)):
        chosen = generator.random((people, questions)) < 0.4
        found = preference(chosen)
        widths = [
            high - low for low, high in (wilson_interval(int(chosen.sum()), chosen.size), pigeonhole_interval(chosen))
        ]
        assert found.high - found.low == pytest.approx(max(widths))
