"""One concept sat down to be pictured: project, base model, question and device, and its pictures as they are kept.

Shared by `eval`, which judges the pictures, and its study, which lets people do that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attnbooth_cli import __version__
from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.concept import Card, files_of
from attnbooth_cli.engine.devices import resolve_device, resolve_precision
from attnbooth_cli.engine.families import ComponentPool, Components, load_tokenizer
from attnbooth_cli.engine.gallery import Shelf, fill
from attnbooth_cli.engine.generation import base_of, load_base, load_concept
from attnbooth_cli.engine.methods import StageName
from attnbooth_cli.engine.preparation import file_hashes, weights_sha256
from attnbooth_cli.engine.question import EvalOptions, Question, ask
from attnbooth_cli.engine.sampling import Request
from attnbooth_cli.engine.tokens import Placeholder, check_length
from attnbooth_cli.engine.vocabulary import warn_of_unknown_words
from attnbooth_cli.errors import BaseModelError, InputError
from attnbooth_cli.events import Emit, Warned
from attnbooth_cli.project import durable
from attnbooth_cli.project.manifest import Manifest
from attnbooth_cli.project.project import Project, images_folder, open_project


@dataclass(frozen=True)
class Sitting:
    """What every picture of one run is made with.

    Attributes:
        card: Of the concept, or of one of its moments.
        base_files: Hash of everything the base model is loaded from, configurations too.
        pool: Keeps the base model where several moments are pictured.
    """

    project: Project
    manifest: Manifest
    card: Card
    base: BaseModel
    base_files: str
    question: Question
    options: EvalOptions
    device: torch.device
    pool: ComponentPool
    emit: Emit

    def pictures_of(self, card: Card, stage: StageName, prompts: Sequence[str]) -> tuple[list[list[Path]], int]:
        """The concept's pictures of spelt-out prompts at every seed, prompt by prompt, and how many were made now."""
        subject = {
            "digest": card.document["digest"],
            "run": card.run,
            "stage": stage,
            "files": {name: card.document["files"][name] for name in files_of(card, stage)},
        }

        def load() -> Components:
            loaded = load_concept(self.project, card, stage, self.options.device, "auto", self.emit, self.pool)
            return loaded.components

        return self._pictures(subject, prompts, load, self.project.evaluation / "pictures")

    def untuned_pictures(self, prompts: Sequence[str]) -> tuple[list[list[Path]], int]:
        """The base model's own pictures, likewise."""
        return self._pictures(
            {},
            prompts,
            lambda: load_base(self.base, self.options.device, "auto", self.pool),
            self.options.untuned_pictures or self.project.evaluation / "pictures",
        )

    @property
    def how(self) -> dict[str, str]:
        """What else decides pixels: precision, and the versions of the libraries and of attnbooth itself."""
        versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
        return {"precision": resolve_precision("auto", self.device), **versions, "attnbooth": __version__}

    def training_pictures(self) -> tuple[Path, ...]:
        """The pictures the concept was trained on.

        Raises:
            InputError: one is missing or changed.
        """
        folder = images_folder(self.project, self.manifest)
        for picture in self.card.document["plan"]["pictures"]:
            path = folder / Path(picture["name"]).name
            if not path.is_file() or durable.sha256(path) != picture["sha256"]:
                raise InputError(
                    f"the training picture {path} is missing or changed since the concept was trained",
                    "put it back: identity is measured against the pictures the concept was trained on",
                )
        return tuple(folder / Path(picture["name"]).name for picture in self.card.document["plan"]["pictures"])

    def _pictures(
        self, subject: dict[str, Any], prompts: Sequence[str], load: Callable[[], Components], folder: Path
    ) -> tuple[list[list[Path]], int]:
        """Pictures at every seed, prompt by prompt, and how many were made now.

        Args:
            subject: What decides the weights that `load` loads, beside the base model's.
            folder: Of shelves.
        """
        shelf = Shelf(
            folder, {**subject, "base": self.base_files, "on": self.device.type, **self.how}, self.question.settings
        )
        requests = [Request(prompt, seed) for prompt in prompts for seed in self.question.seeds]
        if not requests:
            return [], 0
        paths, made = fill(shelf, requests, load, self.emit)
        n = self.question.n
        return [paths[start : start + n] for start in range(0, len(paths), n)], made


def open_sitting(
    root: Path | str, options: EvalOptions, emit: Emit, card_of: Callable[[Project], Card], pool: ComponentPool
) -> Sitting:
    """Opens a project and resolves what is asked of it.

    Args:
        card_of: Finds the card of what is pictured.
        pool: Where the base model is kept, if it is.

    Raises:
        InputError: a prompt loses the concept; or as `ask`.
        BaseModelError: the base model cannot be had, or other weights stand in its place.
        DamagedError: files of the project cannot be read.
    """
    project, manifest = open_project(Path(root))
    durable.remove_temporaries(project.root, durable.ABANDONED)
    card = card_of(project)
    base = base_of(card, manifest)
    if weights_sha256(base) != card.document["base"]["sha256"]:
        raise BaseModelError(
            f"the base model {base.ref} has other weights than the one this concept was trained on",
            "put the former model back: with another, neither pictures nor drift mean anything",
        )
    question = ask(base, card, options)
    chosen, *others = question.protocol.prompt_sets
    if others and not (options.prompts or options.prompt_set):
        emit(Warned(f"the prompts are those for {chosen} concepts; --prompts {others[0]} has the others"))
    _check_prompts(base, card.placeholder, question.prompts, emit)
    device = resolve_device(options.device)
    files = durable.sha256_of_text(json.dumps(file_hashes(base), sort_keys=True))
    return Sitting(project, manifest, card, base, files, question, options, device, pool, emit)


def _check_prompts(base: BaseModel, placeholder: Placeholder, prompts: Sequence[str], emit: Emit) -> None:
    """Refuses prompts that lose the concept, and warns of those that lose their end or that the model does not know;
    loads the tokenizer alone."""
    tokenizer = load_tokenizer(base)
    warn_of_unknown_words(tokenizer, placeholder.token, prompts, emit)
    tokenizer.add_tokens(list(placeholder.tokens))
    for text in dict.fromkeys(prompts):
        warning = check_length(tokenizer, placeholder, placeholder.prompt(text), int(tokenizer.model_max_length))
        if warning:
            emit(Warned(warning))
