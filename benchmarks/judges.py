"""Two judges of the bundled world that had no part in making its base model: what a picture shows, and which one.

The classifier names object, scene, style and colour of a picture; the instance encoder embeds it so that pictures of
one instance lie together, whatever its scene and style. Both are small convolutional networks, trained on the world's
own pictures by `tools/tiny`, whose `export` step stores them in `weights/` beside this file; no trained weights are
published yet. They take pictures float32 `[b, 3, 64, 64]` in [-1, 1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

FOLDER = Path(__file__).with_name("weights")
WIDTHS = (32, 64, 128, 256)
"""Channels at 32, 16, 8 and 4 pixels."""
EMBEDDING = 128
"""Length of an instance's embedding."""


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a skip, group-normalised before each (He et al. 2016, v2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(8, channels_in)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1)
        self.norm_2 = nn.GroupNorm(8, channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """`[b, channels_in, h, w]` to `[b, channels_out, h / stride, w / stride]`."""
        inner = self.conv_1(silu(self.norm_1(features)))
        inner = self.conv_2(silu(self.norm_2(inner)))
        return cast(Tensor, self.skip(features) + inner)


class Trunk(nn.Sequential):
    """Pictures `[b, 3, 64, 64]` to features `[b, WIDTHS[-1]]`."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 5, 2, 2)]
        for before, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
            blocks.append(Residual(before, width, 1 if width == WIDTHS[0] else 2))
        blocks.append(Residual(WIDTHS[-1], WIDTHS[-1], 1))
        super().__init__(*blocks, nn.GroupNorm(8, WIDTHS[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Classifier(nn.Module):
    """What a picture shows: logits over the `labels` of each attribute."""

    def __init__(self, labels: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.labels = {attribute: list(names) for attribute, names in labels.items()}
        self.trunk = Trunk()
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTHS[-1], len(names)) for name, names in self.labels.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits `[b, len(labels[attribute])]` by attribute."""
        features = self.trunk(pictures)
        return {attribute: head(features) for attribute, head in self.heads.items()}


class InstanceEncoder(nn.Module):
    """Which instance a picture shows: an embedding of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.project = nn.Linear(WIDTHS[-1], EMBEDDING)

    def forward(self, pictures: Tensor) -> Tensor:
        """Embeddings `[b, EMBEDDING]`, float32."""
        return normalize(self.project(self.trunk(pictures)).float(), dim=-1)


def _load(model: nn.Module, file: Path) -> None:
    with safe_open(file, framework="pt") as stored:
        model.load_state_dict({name: stored.get_tensor(name).float() for name in stored.keys()})  # noqa: SIM118
    model.eval().requires_grad_(False)


def load_classifier(folder: Path = FOLDER) -> Classifier:
    """The trained classifier, in float32, with its file's labels. Raises `FileNotFoundError` without weights."""
    file = folder / "classifier.safetensors"
    with safe_open(file, framework="pt") as stored:
        classifier = Classifier(json.loads(stored.metadata()["labels"]))
    _load(classifier, file)
    return classifier


def load_instance_encoder(folder: Path = FOLDER) -> InstanceEncoder:
    """The trained instance encoder, in float32. Raises `FileNotFoundError` without weights."""
    encoder = InstanceEncoder()
    _load(encoder, folder / "instance_encoder.safetensors")
    return encoder


@torch.inference_mode()
def judged(model: nn.Module, pictures: Tensor, batch: int = 200) -> list[Any]:
    """`model` over `pictures` in batches; the outputs in order."""
    return [model(part) for part in pictures.split(batch)]
