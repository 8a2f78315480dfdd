"""Scores against the same numbers worked out pair by pair, and the answers everyone knows beforehand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.alterations import SAME_LAYOUT, layout, layouts_of_copies


def features(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(*shape, 8))
    return unit(rows)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


@given(seed=st.integers(0, 1000), r=st.integers(1, 5), p=st.integers(1, 4), n=st.integers(1, 4))
def test_every_score_is_the_mean_over_its_pairs(seed: int, r: int, p: int, n: int) -> None:
    references, pictures, texts = features(r, seed=seed), features(p, n, seed=seed + 1), features(p, seed=seed + 2)
    flat = pictures.reshape(-1, 8)
    by_hand = [math.fsum(cosine(picture, one) for one in references) / r for picture in flat]
    np.testing.assert_allclose(scores.identity(references, flat), by_hand, rtol=0, atol=1e-12)
    by_hand = [[cosine(picture, texts[i]) for picture in pictures[i]] for i in range(p)]
    np.testing.assert_allclose(scores.text(texts, pictures), by_hand, rtol=0, atol=1e-12)
    if n > 1:
        pairs = [[cosine(a, b) for a, b in itertools.permutations(row, 2)] for row in pictures]
        np.testing.assert_allclose(scores.diversity(pictures), [1 - np.mean(row) for row in pairs], atol=1e-12)
    else:
        assert np.isnan(scores.diversity(pictures)).all()
    closest, which = scores.nearest(references, flat)
    for picture, value, index in zip(flat, closest, which, strict=True):
        assert value == pytest.approx(max(cosine(picture, one) for one in references), abs=1e-12)
        assert cosine(picture, references[index]) == pytest.approx(value, abs=1e-12)


def test_known_answers() -> None:
    references = features(4)
    assert scores.identity(references[:1], references[:1])[0] == pytest.approx(1)
    assert scores.drift(references, references) == pytest.approx(np.zeros(4))
    assert scores.diversity(np.repeat(references[:, None], 3, 1)) == pytest.approx(np.zeros(4))
    texts, pictures = features(4, seed=1), features(4, seed=1)[:, None]
    assert scores.text(texts, pictures).mean() > scores.text(np.roll(texts, 1, 0), pictures).mean()


def test_a_copy_is_as_near_a_reference_as_alterations_of_it_are() -> None:
    references = features(4)
    near, far = (unit(references + spread * features(4, seed=9)) for spread in (0.2, 0.6))
    alike = np.ones((9, 4), bool)
    found = scores.copies(
        references, np.stack([far, near]), np.concatenate([references[2:3], near, -references]), alike
    )
    assert found.tolist() == [2, 0, 1, 2, 3] + [-1] * 4
    assert (scores.copies(references, near[None], far, alike[:4]) == -1).all()
    swapped = near.copy()
    swapped[:2] = far[:2]  # each reference has a threshold of its own
    assert scores.copies(references, swapped[None], far, alike[:4]).tolist() == [0, 1, -1, -1]
    alike[1] = False  # another scene
    assert scores.copies(references, near[None], references, alike[:4]).tolist() == [0, -1, 2, 3]


def test_copies_are_laid_out_as_their_picture_and_true_pictures_are_not() -> None:
    """Of three test concepts: training pictures mirrored or closer, and each other; true pictures of prompts."""
    for concept in ("backpack", "cat", "teapot"):
        folder = Path(__file__).parents[2] / "benchmarks" / "concepts" / "test" / concept
        training, true = (
            [Image.open(path).convert("RGB") for path in sorted((folder / name).iterdir())]
            for name in ("images", "truth")
        )
        of_copies = [layouts_of_copies(picture) for picture in training]

        def alike(picture: Image.Image, among: list[np.ndarray] = of_copies) -> list[bool]:
            return [float((its @ layout(picture)).max()) >= SAME_LAYOUT for its in among]

        for number, picture in enumerate(training):
            width, height = picture.size
            closer = picture.resize(picture.size, box=(0.06 * width, 0.06 * height, 0.94 * width, 0.94 * height))
            for copied in (picture, ImageOps.mirror(picture), closer):
                assert alike(copied) == [number == other for other in range(len(training))]
        assert not any(any(alike(picture)) for picture in true)


def test_a_copy_of_a_picture_that_is_not_square_is_a_square_of_it() -> None:
    """Training shows squares from along its longer side, or all of it stretched."""
    folder = Path(__file__).parents[2] / "benchmarks" / "concepts" / "test" / "cat" / "images"
    first, second, *_ = (Image.open(path).convert("RGB") for path in sorted(folder.iterdir()))
    side = first.height
    for turned in (False, True):
        photo = Image.new("RGB", (2 * side, side))
        photo.paste(first, (0, 0))
        photo.paste(second, (side, 0))
        photo = photo.resize((8 * side, 4 * side), Image.Resampling.BICUBIC)
        boxes = [(start, 0, start + photo.height, photo.height) for start in (0, 70, 4 * side)]
        copies = [photo.crop(box) for box in boxes] + [photo.resize((side, side), Image.Resampling.BICUBIC)]
        if turned:
            photo, *copies = (its.transpose(Image.Transpose.ROTATE_90) for its in (photo, *copies))
        among = layouts_of_copies(photo)
        for copied in copies:
            for shown in (copied, ImageOps.mirror(copied)):
                small = shown.resize((side, side), Image.Resampling.BICUBIC)
                assert float((among @ layout(small)).max()) >= SAME_LAYOUT
        third = Image.open(sorted(folder.iterdir())[2]).convert("RGB")
        assert float((among @ layout(third)).max()) < SAME_LAYOUT


def test_intervals_hold_the_mean_and_shrink_with_the_spread() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.1, 24)
    wide, narrow = scores.bootstrap(values), scores.bootstrap(0.3 + (values - 0.3) / 10)
    assert wide.low < values.mean() < wide.high
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 10)
    assert scores.bootstrap(values) == wide
    constant = scores.bootstrap(np.full(5, 0.25))
    assert (constant.low, constant.high) == (0.25, 0.25)


@pytest.mark.parametrize(("prompts", "least"), [(5, 0.90), (6, 0.91), (24, 0.92)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(prompts: int, least: float) -> None:
    """Of 600 samples, 95 % intervals hold the true mean in about 95 %, whatever the number of prompts."""
    draws = np.random.default_rng(1).normal(0, 1, (600, prompts))
    held = [(i := scores.bootstrap(row, resamples=800)).low <= 0 <= i.high for row in draws]
    assert least <= np.mean(held) <= 0.98


def test_too_few_prompts_have_no_interval() -> None:
    assert scores.bootstrap(np.array([0.1, 0.2, 0.3, 0.4])) is None
    assert scores.paired_difference(np.zeros(1), np.ones(1)) == (1.0, None)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(4, 2.7764), (5, 2.5706), (10, 2.2281), (23, 2.0687), (1000, 1.9623)]
)
def test_students_quantiles(freedom: int, quantile: float) -> None:
    """Against printed tables."""
    assert scores._student(0.975, freedom) == pytest.approx(quantile, abs=0.01)


def test_pairs_cancel_what_prompts_have_in_common() -> None:
    difficulty = np.random.default_rng(0).normal(0, 1, 24)
    first, second = difficulty, difficulty + 0.1
    mean, interval = scores.paired_difference(first, second)
    assert mean == pytest.approx(0.1)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(0.1)
