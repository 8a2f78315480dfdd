"""Training of the two judges in `benchmarks/judges.py`, on pictures alone: neither sees a model of the pipeline.

Generated pictures are softer and noisier than rendered ones, so both are trained on pictures blurred, dimmed and
disturbed at random; what is theirs to ignore is never a reason to call a picture something else.
"""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from benchmarks.judges import Classifier, InstanceEncoder
from tools.tiny.clip import augmented, instance_contrast
from tools.tiny.dataset import ATTRIBUTES, JudgeData, open_judge_data
from tools.tiny.training import Build, Draw, Loss, Modules, Schedule, train
from tools.tiny.vae import scaled

TEMPERATURE = 0.07
PAIRS_A_NOUN = 4
"""Pairs of each noun drawn in a row: most of an instance's contrast is with others of its own category."""

CLASSIFIER_SCHEDULE = Schedule(
    steps=12_000, batch_size=64, learning_rate=1.5e-3, warm_up=100, cool_down=4_000, weight_decay=0.02,
    ema_decay=0.998, seed=31,
)  # fmt: skip
INSTANCE_SCHEDULE = Schedule(
    steps=5_000, batch_size=48, learning_rate=1.5e-3, warm_up=100, cool_down=2_000, weight_decay=0.02,
    ema_decay=0.998, seed=32,
)  # fmt: skip


def disturbed(pictures: Tensor, draw: Draw) -> Tensor:
    """Blur, noise, contrast and brightness of varying strength, independent for each of `pictures` `[b, 3, s, s]`."""
    share = 0.9 * draw.uniform(1, 1, 1) * (draw.uniform(1, 1, 1) < 0.5)
    padded = nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    pictures = pictures + share * (avg_pool2d(padded, 3, 1) - pictures)
    noise = 0.1 * draw.uniform(1, 1, 1) * (draw.uniform(1, 1, 1) < 0.3)
    pictures = pictures + noise * draw.normal(*pictures.shape[1:])
    contrast, brightness = 1 + 0.2 * (draw.uniform(1, 1, 1) - 0.5), 0.12 * (draw.uniform(1, 1, 1) - 0.5)
    return (pictures * contrast + brightness).clamp(-1, 1)


@lru_cache(maxsize=1)
def _pairs_by_noun(work: Path) -> list[np.ndarray]:
    """The pairs of each noun that has any."""
    noun_of_pair = open_judge_data(work).labels["noun"][::2]
    return [np.flatnonzero(noun_of_pair == noun) for noun in np.unique(noun_of_pair)]


def _pixels(data: JudgeData, numbers: np.ndarray, draw: Draw) -> Tensor:
    return disturbed(augmented(scaled(data.at(data.pictures, numbers)), draw), draw)


def classifier_loss(work: Path, modules: Modules, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy over the attributes, where there is one to know: no noun of two things, no colour unnamed."""
    data = open_judge_data(work)
    numbers = draw.indices(len(data.labels)).numpy()
    model = modules["classifier"]
    logits = model(_pixels(data, numbers, draw).to(next(model.parameters()).dtype))
    labels = data.labels[numbers]
    labels["noun"][labels["companion"] >= 0] = -1
    losses, figures = [], {}
    for attribute, its in logits.items():
        truth = torch.from_numpy(labels[attribute].astype(np.int64))
        said = truth >= 0
        losses.append(cross_entropy(its[said].float(), truth[said]) if said.any() else its.sum() * 0.0)
        figures[attribute] = (its.argmax(1) == truth)[said].float().mean().item()
    return torch.stack(losses).mean(), figures


def instance_loss(work: Path, modules: Modules, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
    """Contrast between the pairs of a batch that is drawn noun by noun."""
    data, by_noun = open_judge_data(work), _pairs_by_noun(work)
    nouns = draw.indices(len(by_noun)).repeat_interleave(PAIRS_A_NOUN)[: draw.size]
    which = draw.uniform()
    pairs = np.array([by_noun[n][int(w * len(by_noun[n]))] for n, w in zip(nouns, which.numpy(), strict=True)])
    numbers = [2 * pairs, 2 * pairs + 1]
    model = modules["encoder"]
    pixels = torch.cat([_pixels(data, half, draw) for half in numbers])
    embeddings = model(pixels.to(next(model.parameters()).dtype))
    identity = torch.from_numpy(data.labels["instance"][np.concatenate(numbers)])
    value, found = instance_contrast(embeddings, identity, TEMPERATURE)
    return value, {"partner_found": found}


def build_classifier() -> dict[str, nn.Module]:
    """An untrained classifier of the world's attributes."""
    return {"classifier": Classifier(ATTRIBUTES)}


def build_instance_encoder() -> dict[str, nn.Module]:
    """An untrained instance encoder."""
    return {"encoder": InstanceEncoder()}


def _trained(build: Build, loss: Loss, schedule: Schedule, folder: Path, file: Path, minutes: float | None) -> bool:
    """Train, or continue; when done, write the one module to `file` in float16, with the labels' names."""
    modules = train(build, loss, schedule, folder, minutes=minutes)
    if modules is None:
        return False
    (model,) = modules.values()
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, file, {"labels": json.dumps(ATTRIBUTES)})
    return True


def train_classifier(work: Path, minutes: float | None = None) -> bool:
    """Write `work/judges/classifier.safetensors` once it is trained, and say whether it is."""
    folder, loss = work / "judges", partial(classifier_loss, work)
    file = folder / "classifier.safetensors"
    return _trained(build_classifier, loss, CLASSIFIER_SCHEDULE, folder / "classifier", file, minutes)


def train_instance_encoder(work: Path, minutes: float | None = None) -> bool:
    """Write `work/judges/instance_encoder.safetensors` once it is trained, and say whether it is."""
    folder, loss = work / "judges", partial(instance_loss, work)
    file = folder / "instance_encoder.safetensors"
    return _trained(build_instance_encoder, loss, INSTANCE_SCHEDULE, folder / "encoder", file, minutes)
