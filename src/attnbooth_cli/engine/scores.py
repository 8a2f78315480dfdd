"""What evaluation computes from features, and nothing about where features come from. Numpy only.

    r  reference pictures      p  prompts
    n  pictures of a prompt    d  width of the judge's space

All features are L2-normalised, so that a dot product is a cosine; all sums are in float64. Cosines are raw, never
CLIPScore's factor of 2.5 (Hessel et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PROMPTS = 5
"""Of fewer values, no resampling says how far their mean may be off (our choice)."""
NORMAL = NormalDist()
_AT_ONCE = 1_000_000
"""Values drawn together, so that memory does not grow with the number of prompts."""


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval."""

    low: float
    high: float


def cosines(first: Array, second: Array) -> Array:
    """All cosines between [a, d] and [b, d]: [a, b]."""
    found: Array = np.asarray(first, np.float64) @ np.asarray(second, np.float64).T
    return found


def identity(references: Array, pictures: Array) -> Array:
    """Each picture's mean cosine to the references: [pn] (Gal et al. 2022, image similarity)."""
    found: Array = cosines(pictures, references).mean(1)
    return found


def text(texts: Array, pictures: Array) -> Array:
    """Each picture's cosine to its own prompt: [p, n] from texts [p, d] and pictures [p, n, d]."""
    found: Array = np.einsum("pnd,pd->pn", np.asarray(pictures, np.float64), np.asarray(texts, np.float64))
    return found


def diversity(pictures: Array) -> Array:
    """One minus the mean cosine between different pictures of a prompt: [p] from [p, n, d]; nan where n is 1."""
    count = pictures.shape[1]
    if count < 2:
        return np.full(len(pictures), np.nan)
    pairs: Array = np.einsum("pid,pjd->pij", *[np.asarray(pictures, np.float64)] * 2)
    off_diagonal: Array = pairs.sum((1, 2)) - np.trace(pairs, axis1=1, axis2=2)
    alike: Array = off_diagonal / (count * (count - 1))
    return 1 - alike


def nearest(references: Array, pictures: Array) -> tuple[Array, NDArray[np.intp]]:
    """Each picture's largest cosine to a reference, and which reference that is: [pn] each."""
    all_cosines = cosines(pictures, references)
    return all_cosines.max(1), all_cosines.argmax(1)


def copies(references: Array, altered: Array, pictures: Array, alike: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Of which reference each picture [k, d] is a copy, -1 for none: [k].

    A copy is as near the reference as slight alterations of it are, and laid out alike; of several the nearest counts.

    Args:
        references: [r, d].
        altered: [a, r, d], alterations after which a picture is still a copy.
        alike: [k, r], whether a picture is laid out as a reference.
    """
    thresholds = np.einsum("rd,ard->ar", np.asarray(references, np.float64), np.asarray(altered, np.float64)).min(0)
    near = cosines(pictures, references)
    copied = np.where((near >= thresholds) & alike, near, -np.inf)
    return np.where(np.isinf(copied).all(1), -1, copied.argmax(1))


def drift(base: Array, tuned: Array) -> Array:
    """One minus the cosine between the base model's picture and the tuned one's, same prompt and seed: [k]."""
    same: Array = (np.asarray(base, np.float64) * np.asarray(tuned, np.float64)).sum(-1)
    return 1 - same


def bootstrap(values: Array, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """A 95 % interval of the mean of `values` [p], by resampling with replacement; None for fewer than `MIN_PROMPTS`.

    The percentile method (Efron 1979) is too narrow for small samples; its percentiles are therefore moved out as far
    as Student's t lies outside the normal distribution, and by the bias of the sample's spread (Hesterberg 2015,
    "What teachers should know about the bootstrap", the expanded percentile interval).
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < MIN_PROMPTS:
        return None
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // count)
    means = [
        values[generator.integers(0, count, (min(at_once, resamples - start), count))].mean(1)
        for start in range(0, resamples, at_once)
    ]
    tail = NORMAL.cdf(-np.sqrt(count / (count - 1)) * _student((1 + CONFIDENCE) / 2, count - 1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(low), float(high))


def _student(probability: float, freedom: int) -> float:
    """The quantile of Student's t, by its expansion around the normal one (Abramowitz and Stegun 26.7.5).

    Within 0.01 of the true value for 97.5 % and four degrees of freedom or more.
    """
    z = NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))


def paired_difference(first: Array, second: Array, seed: int = 0) -> tuple[float, Interval | None]:
    """Mean of `second - first` over prompts both were scored on, [p] each, with its interval."""
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    return float(difference.mean()), bootstrap(difference, seed=seed)
