"""The search for the schedule that suits the bundled model: learning rates and augmentation, on tuning concepts only.

Each trial trains one tuning concept with `--fast`'s steps at other rates and scores what it makes of prompts with
scenes and styles its references do not show, by the independent judges. A row is written as soon as it is known, so a
search continues where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnbooth_cli.engine.generation import generate
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.training import train
from benchmarks.judges import judged, load_classifier
from tools.tiny.concepts import Concept, held_out
from tools.tiny.dataset import wardrobe_of
from tools.tiny.instances import Wardrobe
from tools.tiny.measure import GUIDANCE, SAMPLING_STEPS, instance_embed
from tools.tiny.processes import each_done
from tools.tiny.truth import concept_images, depicted, references, true_picture
from tools.tiny.vae import scaled

PROMPTS = (
    "a photo of a {}",
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "a photo of a {} in the forest",
    "a photo of a {} in space",
    "a photo of a {} at sunset",
    "a photo of a {} on a red background",
    "a photo of a {} in the city",
    "an oil painting of a {} on the beach",
    "a watercolor of a {} in the forest",
    "a drawing of a {} in the city",
    "a pencil sketch of a {} in the snow",
    "pixel art of a {} in a field of flowers",
    "a sepia photo of a {} in the rain",
    "a neon sign of a {} in space",
    "an oil painting of a {} at sunset",
)
PICTURES_EACH = 2


@dataclass(frozen=True)
class Trial:
    """What the paper's fast rates are multiplied by in the three stages, and the augmentation."""

    embedding: float
    attention: float
    unet: float
    augmentation: str = "upright"

    @property
    def name(self) -> str:
        return f"{self.embedding:g}-{self.attention:g}-{self.unet:g}-{self.augmentation}"

    def settings(self) -> tuple[str, ...]:
        """As `--set` takes them; the rates are METHOD's, stage 3's that of fast mode."""
        return (
            f"train.embedding.learning_rate={1e-3 * self.embedding}",
            f"train.attention.learning_rate={2e-5 * self.attention}",
            f"train.unet.learning_rate={1e-5 * self.unet}",
            f"train.augmentation={self.augmentation}",
        )


TRIALS = (
    Trial(1, 1, 1, "published"),
    Trial(5, 10, 10, "published"),
    Trial(5, 10, 10),
    Trial(10, 10, 10),
    Trial(5, 10, 20),
    Trial(5, 30, 30),
)


@dataclass(frozen=True)
class Job:
    """One trial on one tuning concept; `model` is the base model's folder."""

    work: Path
    model: Path
    trial: Trial
    concept: Concept


def scores(concept: Concept, wardrobe: Wardrobe, work: Path, pictures: np.ndarray) -> dict[str, float]:
    """Scores of pictures of `PROMPTS`, `PICTURES_EACH` of each in turn, uint8 `[n, 64, 64, 3]`.

    `identity`: mean cosine to the references by the instance encoder. `scene`, `style`, `object`: how often the
    classifier sees what the prompt asks for, scenes only where one is named. `both`: identity of the pictures whose
    scene and style are right, zero for the others; what is to be as large as it can.
    """
    classifier, embed = load_classifier(work / "judges"), instance_embed(work)
    own = embed(scaled(np.stack([picture for _, picture in references(concept, wardrobe)])))
    identity = (embed(scaled(pictures)) @ own.T).mean(1)
    depictions = [depicted(concept, prompt, "") for prompt in PROMPTS for _ in range(PICTURES_EACH)]
    outputs: list[Any] = judged(classifier, scaled(pictures))

    def right(attribute: str, wanted: Sequence[str]) -> torch.Tensor:
        seen = torch.cat([output[attribute] for output in outputs]).argmax(1).tolist()
        names = classifier.labels[attribute]
        return torch.tensor([name in ("", names[k]) for k, name in zip(seen, wanted, strict=True)])

    scene = right("scene", [depiction.scene for depiction in depictions])
    style = right("style", [depiction.style for depiction in depictions])
    named = torch.tensor([depiction.scene != "" for depiction in depictions])
    return {
        "identity": float(identity.mean()),
        "scene": float(scene[named].float().mean()),
        "style": float(style.float().mean()),
        "object": float(right("noun", [concept.thing.noun] * len(depictions)).float().mean()),
        "both": float((identity * (scene & style)).mean()),
    }


def ceiling(concept: Concept, wardrobe: Wardrobe, work: Path) -> dict[str, float]:
    """The scores of true pictures of the same prompts."""
    pictures = [true_picture(concept, prompt, wardrobe, seed) for prompt in PROMPTS for seed in range(PICTURES_EACH)]
    return scores(concept, wardrobe, work, np.stack(pictures))


def trained_pictures(
    concept: Concept, wardrobe: Wardrobe, trial: Trial, model: Path, root: Path
) -> tuple[np.ndarray, float]:
    """Train the concept on the base model in the folder `model`; its pictures of `PROMPTS`, and the seconds it took."""
    shutil.rmtree(root, ignore_errors=True)
    images = concept_images(concept, wardrobe, root.with_name(f"{root.name}-images"))
    init(root, images=[images], category=concept.thing.noun, model=str(model))
    started = time.monotonic()
    train(root, options=TrainOptions(fast=True, settings=trial.settings()))
    seconds = time.monotonic() - started
    made = generate(root, PROMPTS, n=PICTURES_EACH, guidance=GUIDANCE, steps=SAMPLING_STEPS)
    return np.stack([np.asarray(Image.open(picture.path).convert("RGB")) for picture in made.pictures]), seconds


def search(
    work: Path, model: Path, say: Callable[[str], None], processes: int = 1, trials: Sequence[Trial] = TRIALS
) -> None:
    """Every trial on every tuning concept; rows in `work/measured/schedule.jsonl`, one is never made twice."""
    wardrobe = wardrobe_of(work)
    file = _rows(work)
    file.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    done = {(row["trial"], row["concept"]) for row in rows}
    tuning = [concept for concept in held_out() if concept.split == "tuning"]
    for concept in tuning:
        if ("ceiling", concept.name) not in done:
            _append(file, {"trial": "ceiling", "concept": concept.name} | ceiling(concept, wardrobe, work))
    jobs = [
        Job(work, model, trial, concept)
        for trial in trials
        for concept in tuning
        if (trial.name, concept.name) not in done
    ]
    for count in each_done(do, jobs, processes):
        say(f"schedule: {count} of {len(jobs)}")


def do(job: Job) -> None:
    """Train, make the pictures, and write the row."""
    wardrobe, name = wardrobe_of(job.work), job.concept.name
    root = job.work / "schedule" / job.trial.name / name
    pictures, seconds = trained_pictures(job.concept, wardrobe, job.trial, job.model, root)
    row = scores(job.concept, wardrobe, job.work, pictures) | {"seconds": seconds}
    _append(_rows(job.work), {"trial": job.trial.name, "concept": name} | row | {"settings": asdict(job.trial)})
    shutil.rmtree(root / "concept", ignore_errors=True)


def _rows(work: Path) -> Path:
    return work / "measured" / "schedule.jsonl"


def _append(file: Path, row: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as rows:
        rows.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def table(work: Path) -> list[dict[str, Any]]:
    """Means over the concepts of every trial that is complete, best first."""
    rows = [json.loads(line) for line in _rows(work).read_text("utf-8").splitlines()]
    count = sum(concept.split == "tuning" for concept in held_out())
    means = []
    for trial in dict.fromkeys(row["trial"] for row in rows):
        its = [row for row in rows if row["trial"] == trial]
        if len(its) == count:
            keys = [key for key in ("identity", "scene", "style", "object", "both", "seconds") if key in its[0]]
            means.append({"trial": trial} | {key: round(float(np.mean([row[key] for row in its])), 4) for key in keys})
    return sorted(means, key=lambda row: -row["both"])
