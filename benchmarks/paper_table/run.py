"""Doing a unit: train, generate, and have the bundled judge and the two independent ones look at the pictures."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.base_models import bundled_folder
from attnbooth_cli.engine.evaluation import evaluate
from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.judges import ClipJudge, load_clip
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.prompts import COMPLEX, DRIFT, EVALUATION
from attnbooth_cli.engine.question import EvalOptions
from attnbooth_cli.engine.training import train
from attnbooth_cli.project import durable
from attnbooth_cli.project.project import Project
from benchmarks.judges import Classifier, InstanceEncoder, judged, load_classifier, load_instance_encoder
from benchmarks.paper_table.measures import SCENES
from benchmarks.paper_table.units import SHOWN, Unit, concepts, rates, samples, settings_of, strip_of
from benchmarks.paper_table.variants import changes_of
from tools.tiny.concepts import held_out
from tools.tiny.truth import depicted

PICTURES = 2
"""Of each prompt."""
PROMPTS = tuple(prompt for its in EVALUATION["tiny"].values() for prompt in its)
SCENE_PROMPTS = sum(len(EVALUATION["tiny"][name]) for name in SCENES)
"""The first of them, which change nothing of the concept itself."""
COMPLEX_PROMPTS = COMPLEX["tiny"]["complex"]
PRIOR_PICTURES = 50
"""Of the class, where the published number is 200: making them would take as long as the training."""


@dataclass
class Desk:
    """What all units of a process share: the base model, loaded once, and the judges."""

    pool: ComponentPool

    @cached_property
    def clip(self) -> ClipJudge:
        """The bundled judge."""
        return load_clip("tiny", bundled_folder(), torch.device("cpu"))

    @cached_property
    def classifier(self) -> Classifier:
        """Of object, scene, style and colour."""
        return load_classifier()

    @cached_property
    def encoder(self) -> InstanceEncoder:
        """Of instances."""
        return load_instance_encoder()


def do(unit: Unit, work: Path, desk: Desk) -> dict[str, Any]:
    """Trains and evaluates one unit from the start."""
    root = work / "projects" / unit.name
    shutil.rmtree(root, ignore_errors=True)
    init(root, images=[unit.images], category=unit.category, model="tiny")
    write_concept(root, changes_of(unit.variant).get("concept", {}))
    began = time.process_time()
    train(root, options=options_of(unit), pool=desk.pool)
    seconds = time.process_time() - began
    asked = EvalOptions(n=PICTURES, baseline=True, untuned_pictures=work / "untuned")
    found = evaluate(root, asked, pool=desk.pool).report
    complex_ = evaluate(root, replace(asked, prompt_set="complex", drift=False), pool=desk.pool).report
    pictures = opened([root / name for name in found["pictures"]])
    references = opened(sorted(unit.images.iterdir()))
    if (unit.split, unit.concept) == ("test", concepts("test")[0]):
        save_strip([pictures[number * PICTURES] for number in SHOWN], strip_of(work, unit))
    shutil.rmtree(root / "concept", ignore_errors=True)
    shutil.rmtree(root / "runs", ignore_errors=True)
    return {
        "method": unit.label,
        "rates": rates(unit.factor),
        "concept": unit.concept,
        "seconds": seconds,
        "samples": samples(unit),
        "identity": found["identity"],
        "text": found["text"],
        "drift": found["overall"]["drift"]["mean"],
        "drift of": drift_of(found["drift_pairs"], unit.category),
        "survival": found["overall"]["survival"]["mean"],
        "copies": found["overall"]["copies"]["count"],
        "complex": {"identity": complex_["identity"], "text": complex_["text"], "untuned": untuned_of(complex_)},
        "groups": {name: {key: its["mean"] for key, its in row.items()} for name, row in found["groups"].items()},
        "second opinion": second_opinion(desk, references, pictures),
        "untuned": untuned_of(found),
        "truth": truth(desk, unit, references),
        "by": made_by(),
    }


def write_concept(root: Path, changes: Mapping[str, Any]) -> None:
    """Writes into a new project's manifest what is no setting of training."""
    manifest = Project(root).manifest
    lines = [f"{key} = {value}\n" for key, value in changes.items()]
    durable.write_text(manifest, manifest.read_text("utf-8").replace("[concept]\n", "".join(["[concept]\n", *lines])))


def untuned_of(report: Mapping[str, Any]) -> dict[str, float]:
    """What the base model scored on the same prompts."""
    return {name: report["untuned"][name]["mean"] for name in ("identity", "text")}


def drift_of(pairs: Sequence[Mapping[str, Any]], category: str) -> dict[str, float]:
    """Mean drift of the category's own pictures, and of those of other things."""
    own = {prompt.format(category=category) for prompt in DRIFT["tiny"] if "{category}" in prompt}
    parts: dict[str, list[float]] = {"category": [], "others": []}
    for pair in pairs:
        parts["category" if pair["prompt"] in own else "others"].append(pair["drift"])
    return {name: float(np.mean(its)) for name, its in parts.items()}


def made_by() -> dict[str, Any]:
    """Versions, threads and processor."""
    versions = {name: version(name) for name in ("attnbooth", "torch", "diffusers", "transformers")}
    (model, *_) = re.findall("model name\\s*: (.*)", Path("/proc/cpuinfo").read_text()) or ["unknown"]
    return {**versions, "threads": torch.get_num_threads(), "processor": model}


def save_strip(pictures: Sequence[Image.Image], file: Path) -> None:
    """Pictures beside one another."""
    file.parent.mkdir(parents=True, exist_ok=True)
    side = pictures[0].height
    strip = Image.new("RGB", (side * len(pictures), side))
    for column, picture in enumerate(pictures):
        strip.paste(picture, (column * side, 0))
    strip.save(file, quality=90)


def options_of(unit: Unit) -> TrainOptions:
    """The published schedule with what the unit sets, and fewer class pictures."""
    settings = {"train.schedule": "paper", "train.prior_pictures": PRIOR_PICTURES, **settings_of(unit)}
    return TrainOptions(method=unit.method, settings=tuple(f"{key}={value}" for key, value in settings.items()))


def truth(desk: Desk, unit: Unit, references: Sequence[Image.Image]) -> dict[str, Any]:
    """The scores of the true pictures: of the 24 prompts, and of the complex ones."""
    paths = sorted(unit.truth.iterdir(), key=lambda path: int(path.stem))
    rows = np.asarray(desk.clip.features(opened(paths)).numpy(), np.float64)
    own = np.asarray(desk.clip.features(references).numpy(), np.float64)

    def scored(part: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
        texts = desk.clip.texts([prompt.format(unit.category) for prompt in prompts]).numpy()
        return {
            "identity": float(scores.identity(own, part).mean()),
            "text": float(scores.text(texts, part[:, None]).mean()),
        }

    simple, complex_ = rows[: len(PROMPTS)], rows[len(PROMPTS) : len(PROMPTS) + len(COMPLEX_PROMPTS)]
    opinion = second_opinion(desk, references, opened(paths[: len(PROMPTS)]))
    in_scenes = scored(simple[:SCENE_PROMPTS], PROMPTS[:SCENE_PROMPTS])["identity"]
    told = {"complex": scored(complex_, COMPLEX_PROMPTS), "second opinion": opinion}
    return {**scored(simple, PROMPTS), "in scenes": in_scenes, **told}


def copied(desk: Desk, split: str, concept: str) -> dict[str, float]:
    """The scores of who answers every one of the 24 prompts with the training pictures."""
    unit = Unit("", 1.0, split, concept)
    own = np.asarray(desk.clip.features(opened(sorted(unit.images.iterdir()))).numpy(), np.float64)
    texts = np.asarray(desk.clip.texts([prompt.format(unit.category) for prompt in PROMPTS]).numpy(), np.float64)
    return {"identity": float((own @ own.T).mean()), "text": float((texts @ own.T).mean())}


def second_opinion(desk: Desk, references: Sequence[Image.Image], pictures: Sequence[Image.Image]) -> dict[str, float]:
    """What the independent judges say of pictures of the 24 prompts, as many of each in turn.

    identity: mean cosine to the references by the instance encoder. scene, style, colour: how often the classifier sees
    what the prompt asks for, among pictures of prompts that ask for one.

    It is not asked which thing it sees: the concepts are drawn unlike anything it learned from, and it recognises half
    of their true pictures.
    """
    each = len(pictures) // len(PROMPTS)
    outputs: list[Any] = judged(desk.classifier, tensor(pictures))
    embedded = [torch.cat(judged(desk.encoder, tensor(rows))) for rows in (pictures, references)]
    found = {"identity": float((embedded[0] @ embedded[1].T).mean())}
    for name in ("scene", "style", "colour"):
        seen = torch.cat([output[name] for output in outputs]).argmax(1)
        wanted = [asked[name] for asked in map(asked_for, PROMPTS) for _ in range(each)]
        labels = [None if its is None else desk.classifier.labels[name].index(its) for its in wanted]
        right = [int(its) == label for its, label in zip(seen, labels, strict=True) if label is not None]
        found[name] = sum(right) / len(right)
    return found


def asked_for(prompt: str) -> dict[str, str | None]:
    """Scene, style and colour of the thing that a prompt asks for, by the classifier's names."""
    shown = depicted(held_out()[0], prompt)  # whichever the concept: none of them has a colour of its own
    return {"scene": shown.scene, "style": shown.style, "colour": shown.thing.colour}


def opened(paths: Sequence[Path]) -> list[Image.Image]:
    """Pictures in RGB."""
    return [Image.open(path).convert("RGB") for path in paths]


def tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the judges take them: float32 `[n, 3, 64, 64]` in [-1, 1]."""
    rows = [torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1) / 127.5 - 1 for picture in pictures]
    return torch.stack(rows)
