"""What an evaluation works with: project, question, judges, and pictures and features as they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnbooth_cli.engine.base_models import BaseModel, resolve, resolve_judge
from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.devices import resolve_device, resolve_precision
from attnbooth_cli.engine.families import ComponentPool, Components, load_tokenizer
from attnbooth_cli.engine.feature_cache import features
from attnbooth_cli.engine.gallery import Shelf, fill
from attnbooth_cli.engine.judges import ClipJudge, PictureJudge, load_clip, load_dino
from attnbooth_cli.engine.model_files import DINO
from attnbooth_cli.engine.preparation import all_weights_sha256, weights_sha256
from attnbooth_cli.engine.question import EvalOptions, Question, ask
from attnbooth_cli.engine.sampling import Request
from attnbooth_cli.engine.scorecard import Wordings, wordings
from attnbooth_cli.engine.scores import Array
from attnbooth_cli.engine.tokens import Placeholder, check_length
from attnbooth_cli.errors import BaseModelError, InputError
from attnbooth_cli.events import Emit, Warned
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.project import Project, images_folder, open_project

HELD_OUT = "held-out"
"""Folder of a project with pictures of the concept that it is not trained on."""


@dataclass(frozen=True)
class Bench:
    """What every moment of one run is scored with.

    Attributes:
        card: Of the concept, or of one of its moments.
        base_weights: Hash of everything the base model loads.
        held_out: Pictures of the concept that training never saw.
        pool: Keeps the base model where several moments are scored.
    """

    project: Project
    card: Card
    base: BaseModel
    base_weights: str
    question: Question
    texts: Wordings
    references: tuple[Path, ...]
    held_out: tuple[Path, ...]
    clip: ClipJudge
    dino: PictureJudge | None
    options: EvalOptions
    device: torch.device
    pool: ComponentPool
    emit: Emit

    def features(self, judge: PictureJudge, paths: Sequence[Path], alteration: str | None = None) -> Array:
        """[n, d]"""
        return as_array(features(self.project.evaluation / "features", judge, paths, alteration))

    def pictures(
        self, subject: dict[str, Any], prompts: Sequence[str], load: Callable[[], Components], folder: Path
    ) -> tuple[list[list[Path]], int]:
        """Pictures of spelt-out prompts at every seed, prompt by prompt, and how many were made now.

        Args:
            subject: What decides the weights that `load` loads, beside the base model's.
            folder: Of shelves.
        """
        how = {"base": self.base_weights, "precision": resolve_precision("auto", self.device), "on": self.device.type}
        shelf = Shelf(folder, {**subject, **how}, self.question.settings)
        requests = [Request(prompt, seed) for prompt in prompts for seed in self.question.seeds]
        if not requests:
            return [], 0
        paths, made = fill(shelf, requests, load, self.emit)
        n = self.question.n
        return [paths[start : start + n] for start in range(0, len(paths), n)], made


def open_bench(
    root: Path | str, options: EvalOptions, emit: Emit, card_of: Callable[[Project], Card], pool: ComponentPool
) -> Bench:
    """Opens a project, resolves what is asked, and loads the judges.

    Args:
        card_of: Finds the card of what is scored.
        pool: Where the base model is kept, if it is.

    Raises:
        InputError: a training picture changed, a prompt loses the concept; or as `ask`.
        BaseModelError: the base model or a judge cannot be had, or other weights stand in the base model's place.
        DamagedError: files of the project or of a judge cannot be read.
    """
    project, manifest = open_project(Path(root))
    card = card_of(project)
    base = resolve(card.document["base"]["model"], revision=card.document["base"]["revision"])
    if weights_sha256(base) != card.document["base"]["sha256"]:
        raise BaseModelError(
            f"the base model {base.ref} has other weights than the one this concept was trained on",
            "put the former model back: with another, neither pictures nor drift mean anything",
        )
    question = ask(base, card, options)
    _check_prompts(base, card.placeholder, question.prompts, emit)
    device = resolve_device(options.device)
    held_out = project.root / HELD_OUT

    def say(text: str) -> None:
        emit(Warned(text))

    references = _references(images_folder(project, manifest), card)
    kept_out = tuple(picture.path for picture in pictures.survey([held_out]).pictures) if held_out.is_dir() else ()
    if {durable.sha256(path) for path in references} & {durable.sha256(path) for path in kept_out}:
        say(f"{held_out} has a copy of a training picture: its score is not held out")
    folder = resolve_judge(question.judge, download=True, say=say)
    dino = None
    if question.dino:
        dino = load_dino(question.dino, resolve_judge(question.dino, kind=DINO, download=True, say=say), device)
    return Bench(
        project,
        card,
        base,
        all_weights_sha256(base),
        question,
        wordings(question, card.placeholder),
        references,
        kept_out,
        load_clip(question.judge, folder, device, question.protocol.preprocessing),
        dino,
        options,
        device,
        pool,
        emit,
    )


def _references(folder: Path, card: Card) -> tuple[Path, ...]:
    """The pictures a concept was trained on.

    Raises:
        InputError: one is missing or changed.
    """
    for picture in card.document["plan"]["pictures"]:
        path = folder / Path(picture["name"]).name
        if not path.is_file() or durable.sha256(path) != picture["sha256"]:
            raise InputError(
                f"the training picture {path} is missing or changed since the concept was trained",
                "put it back: identity is measured against the pictures the concept was trained on",
            )
    return tuple(folder / Path(picture["name"]).name for picture in card.document["plan"]["pictures"])


def as_array(tensor: torch.Tensor) -> Array:
    """Features as scores take them: float64, of the same shape."""
    return np.asarray(tensor.numpy(), np.float64)


def _check_prompts(base: BaseModel, placeholder: Placeholder, prompts: Sequence[str], emit: Emit) -> None:
    """Refuses prompts that lose the concept, and warns of those that lose their end; loads the tokenizer alone."""
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(list(placeholder.tokens))
    for text in dict.fromkeys(prompts):
        warning = check_length(tokenizer, placeholder, placeholder.prompt(text), int(tokenizer.model_max_length))
        if warning:
            emit(Warned(warning))
