"""The engine on the bundled model, single-threaded so that results are bit-stable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from attnbooth_cli.engine.augmentation import published
from attnbooth_cli.engine.base_models import BaseModel, resolve
from attnbooth_cli.engine.conditioning import Subject
from attnbooth_cli.engine.data import LatentSource, load_pictures
from attnbooth_cli.engine.devices import make_accelerator
from attnbooth_cli.engine.families import Components, load_components
from attnbooth_cli.engine.tokens import add_placeholder, placeholder

EXAMPLE = Path(__file__).parents[2] / "src" / "attnbooth_cli" / "assets" / "example" / "cat"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base() -> BaseModel:
    return resolve("tiny")


@pytest.fixture
def components(base: BaseModel) -> Components:
    return load_components(base)


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator(torch.device("cpu"), "float32")


@pytest.fixture
def subject(components: Components) -> Subject:
    return make_subject(components)


@pytest.fixture
def source(components: Components) -> Iterator[LatentSource]:
    return make_source(components)


def latent_shape(components: Components) -> tuple[int, int, int]:
    """Channels, height and width of a latent of the bundled model."""
    config = components.unet.config
    return config.in_channels, config.sample_size, config.sample_size


def make_subject(components: Components, vectors: int = 1, category: str = "cat") -> Subject:
    """A subject whose [V] rows differ from the category's, so that the regulariser is not zero."""
    concept = placeholder("<it>", vectors, category)
    (encoder,) = components.text_encoders
    rows = add_placeholder(encoder.tokenizer, encoder.model, concept)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    parameter = nn.Parameter(rows + 0.05 * noise, requires_grad=False)
    return Subject(components, concept, parameter, (concept.prompt("a photo of a {}"),))


def make_source(components: Components, **changes: object) -> LatentSource:
    pictures = load_pictures(sorted(EXAMPLE.glob("*.png")), 64)
    settings = {"seed": 0, "resolution": 64, "train_timesteps": 1000, "augment": published} | changes
    return LatentSource(pictures, components.vae, **settings)  # type: ignore[arg-type]
