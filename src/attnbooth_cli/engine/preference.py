"""How often people preferred one of two, and how sure that is. Numpy only.

    p  participants      q  questions

Answers of one person are not independent, nor are answers to one question, so Wilson's interval alone, which takes
every answer for a new one, may be too narrow; and resampling alone is too narrow for few or unanimous people. The wider
of the two is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Chosen = NDArray[np.bool_]
"""[p, q]: whether the second of the two was chosen."""

CONFIDENCE = 0.95
RESAMPLES = 10_000
_AT_ONCE = 250
"""Resamples computed together, so that memory does not grow with their number."""


@dataclass(frozen=True)
class Preference:
    """The share of answers that chose the second, with its 95 % interval.

    Attributes:
        by: Which of the two intervals it is.
    """

    share: float
    chosen: int
    answers: int
    low: float
    high: float
    by: Literal["wilson", "pigeonhole"]


def preference(chosen: Chosen) -> Preference:
    """The preference in complete answers [p, q]."""
    count, answers = int(chosen.sum()), chosen.size
    wilson, resampled = wilson_interval(count, answers), pigeonhole_interval(chosen)
    wider: Literal["wilson", "pigeonhole"] = "pigeonhole" if _width(resampled) > _width(wilson) else "wilson"
    low, high = resampled if wider == "pigeonhole" else wilson
    return Preference(count / answers, count, answers, low, high, wider)


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; without continuity correction)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, shrink = count / total, 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def pigeonhole_interval(chosen: Chosen, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The pigeonhole bootstrap's percentile interval (Owen 2007, "The pigeonhole bootstrap").

    People and questions are drawn with replacement, each on their own; an answer counts as often as its person and its
    question were drawn.
    """
    people, questions = chosen.shape
    generator = np.random.default_rng(seed)
    values, shares = chosen.astype(np.float64), []
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        drawn = generator.multinomial(people, np.full(people, 1 / people), count)  # [count, p]
        asked = generator.multinomial(questions, np.full(questions, 1 / questions), count)  # [count, q]
        shares.append(((drawn @ values) * asked).sum(1) / chosen.size)
    low, high = np.quantile(np.concatenate(shares), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]
