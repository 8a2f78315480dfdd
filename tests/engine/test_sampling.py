"""Pictures do not depend on the batch they are made in, and seeds mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.preparation import TrainOptions, prepare
from attnbooth_cli.engine.sampling import SCHEDULERS, Request, SamplingSettings, is_black, sample
from attnbooth_cli.engine.session import sampling_settings  # before tests put fewer steps in its place
from attnbooth_cli.errors import InputError
from tests.engine.conftest import EXAMPLE

SETTINGS = SamplingSettings(steps=4, guidance=4.0, width=64, height=64)
REQUESTS = [Request(f"a photo of a {noun} on the beach", seed) for noun in ("cat", "car") for seed in (0, 1)]


def arrays(components: Components, batch_size: int, settings: SamplingSettings = SETTINGS) -> list[np.ndarray]:
    return [np.asarray(p).astype(int) for p in sample(components, REQUESTS, settings, batch_size=batch_size)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_batch_size_makes_the_same_pictures(components: Components, batch_size: int) -> None:
    for one, other in zip(arrays(components, 4), arrays(components, batch_size), strict=True):
        assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_makes_pictures_by_its_seed(components: Components, name: str) -> None:
    settings = SamplingSettings(4, 4.0, 64, 64, scheduler=name)
    first, other_seed, other_prompt, _ = arrays(components, 4, settings)
    again = arrays(components, 4, settings)[0]
    assert np.array_equal(first, again)
    assert np.abs(first - other_seed).max() > 8
    assert np.abs(first - other_prompt).max() > 8


def test_sizes_other_than_square(components: Components) -> None:
    (picture,) = sample(components, REQUESTS[:1], SamplingSettings(2, 4.0, width=96, height=48))
    assert picture.size == (96, 48)


def test_the_negative_prompt_matters_and_guidance_one_ignores_it(components: Components) -> None:
    def made(guidance: float, negative: str) -> np.ndarray:
        return arrays(components, 4, SamplingSettings(3, guidance, 64, 64, negative=negative))[0]

    assert np.abs(made(4.0, "") - made(4.0, "grass")).max() > 2
    assert np.array_equal(made(1.0, ""), made(1.0, "grass"))


def test_an_unknown_scheduler_is_refused(components: Components) -> None:
    with pytest.raises(InputError, match="no scheduler"):
        next(sample(components, REQUESTS, SamplingSettings(2, 4.0, 64, 64, scheduler="magic")))


def test_black_pictures_are_recognised(components: Components) -> None:
    from PIL import Image

    assert is_black(Image.new("RGB", (8, 8)))
    assert not any(is_black(picture) for picture in sample(components, REQUESTS[:1], SETTINGS))


def test_pictures_of_a_training_are_the_base_models_and_a_smoke_tests_has_four_steps(
    base: BaseModel, tmp_path: Path
) -> None:
    init(tmp_path / "p", images=[EXAMPLE], category="cat", model="tiny")
    for smoke, steps in ((True, 4), (False, base.entry.sampling_steps)):
        plan = prepare(tmp_path / "p", TrainOptions(smoke=smoke)).plan
        assert sampling_settings(base, plan) == SamplingSettings(steps, base.entry.guidance, 64, 64)
