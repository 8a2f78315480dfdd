"""Textual Inversion's preprocessing, against bicubic interpolation written out sample by sample."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnbooth_cli.engine.preprocessing import CLIP_MEAN, CLIP_STD, textual_inversion_pixels


def weight(distance: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel with torch's a."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def sampled(row: np.ndarray, position: float) -> np.ndarray:
    """A line's value between its samples; beyond the ends the last sample repeats."""
    first = math.floor(position)
    taps = range(first - 1, first + 3)
    return sum(weight(position - tap) * row[min(max(tap, 0), len(row) - 1)] for tap in taps)


def by_hand(picture: Image.Image, size: int, y: int, x: int) -> np.ndarray:
    """One pixel of the result: [3]."""
    pixels = np.asarray(picture, np.float64) / 255
    height, width = pixels.shape[:2]
    short = min(height, width)
    target = (size, int(size * width / short)) if height <= width else (int(size * height / short), size)
    top, left = (round((side - size) / 2) for side in target)
    rows = (y + top + 0.5) * height / target[0] - 0.5
    columns = (x + left + 0.5) * width / target[1] - 0.5
    lines = np.stack([sampled(line, columns) for line in pixels])
    return (sampled(lines, rows) - CLIP_MEAN) / CLIP_STD


@pytest.mark.parametrize("shape", [(64, 64), (50, 81), (90, 40), (224, 224), (500, 300)])
def test_each_pixel_is_the_unsmoothed_cubic_value(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    result = textual_inversion_pixels([picture], 224)[0].numpy()
    assert result.shape == (3, 224, 224)
    for y, x in [(0, 0), (5, 220), (111, 112), (223, 1), (200, 223)]:
        np.testing.assert_allclose(result[:, y, x], by_hand(picture, 224, y, x), rtol=0, atol=2e-4)


def test_a_flat_picture_stays_flat_and_is_normalised() -> None:
    result = textual_inversion_pixels([Image.new("RGB", (33, 47), (255, 0, 51))], 32)[0]
    for channel, value in enumerate((1.0, 0.0, 0.2)):
        expected = (value - CLIP_MEAN[channel]) / CLIP_STD[channel]
        np.testing.assert_allclose(result[channel].numpy(), expected, atol=1e-5)


def test_training_pictures_reach_the_judge_as_its_dataset_gives_them(tmp_path: Path) -> None:
    """Stretched to 256 x 256 by Pillow, bicubic, before anything else; generated ones are left alone."""
    from attnbooth_cli.engine.base_models import bundled_folder
    from attnbooth_cli.engine.feature_cache import features
    from attnbooth_cli.engine.judges import load_clip

    values = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(values).save(path)
    judge = load_clip("tiny", bundled_folder(), torch.device("cpu"), "textual-inversion")
    small = Image.fromarray(values).resize((256, 256), Image.Resampling.BICUBIC)
    for training, expected in ((True, small), (False, Image.fromarray(values))):
        for _ in range(2):  # computed, and as it was kept
            found = features(tmp_path / "kept", judge, [path], training=training)
            torch.testing.assert_close(found, judge.features([expected]))
