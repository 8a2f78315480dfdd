"""`eval --study`: two concepts' pictures side by side on one blind page, for people to choose between.

The paper's user study (Pang et al. 2024): which of two pictures better preserves the concept and matches the prompt.
What tells the two apart is in the key alone, which participants never get; the page has pixels under opaque names.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from pathlib import Path

from attnbooth_cli.engine import concept
from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.question import EvalOptions, without_placeholder
from attnbooth_cli.engine.sitting import Sitting, open_sitting
from attnbooth_cli.engine.study_record import Key, Party, Question
from attnbooth_cli.engine.tally import KEY
from attnbooth_cli.errors import InputError
from attnbooth_cli.events import Emit, ignore
from attnbooth_cli.project import durable
from attnbooth_cli.project.shell import command
from attnbooth_cli.reports.study_page import Choice, write_study_page

PAGE = "study.html"


@dataclass(frozen=True)
class Study:
    """A study on disk; `made` pictures were generated now, the others were there."""

    id: str
    folder: Path
    page: Path
    key: Path
    questions: int
    made: int


def make_study(
    first: Path | str,
    second: Path | str,
    options: EvalOptions | None = None,
    *,
    out: Path | None = None,
    emit: Emit = ignore,
) -> Study:
    """Makes the pictures that are missing, and a page and a key of them.

    Args:
        options: As for `evaluate`, but one picture a prompt unless `n` says otherwise.
        out: A folder that is new or empty; one in the first project's `eval/` by default.

    Raises:
        InputError: the two cannot be compared, or there is something in `out`.
        DamagedError, BaseModelError, ResourceError: see `errors`.
    """
    options = options or EvalOptions()
    options = dataclasses.replace(options, n=options.n or 1)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder", "choose another --out: nothing is overwritten")
    sides = [open_sitting(root, options, emit, concept.read_card, ComponentPool()) for root in (first, second)]
    shared = _require_alike(*sides)
    made, paths = 0, []
    for its in sides:
        concept.verify(its.card, f"restore it from a copy, or make it again: {command('resume', its.project.root)}")
        asked = [its.card.placeholder.prompt(text) for text in its.question.prompts]
        found, new = its.pictures_of(its.card, its.card.stage(options.stage), asked)
        paths.append([path for row in found for path in row])
        made += new
    key = _key(sides)
    choices = [
        Choice(question.id, question.shown, tuple(sorted(((question.a, a), (question.b, b)))))
        for question, a, b in zip(key.questions, *paths, strict=True)
    ]
    folder = out or durable.claim_directory(sides[0].project.evaluation, "study", always_numbered=True)
    page, place = folder / PAGE, folder / KEY
    durable.write_json(place, key.model_dump(by_alias=True, mode="json"))  # first: a page is worth nothing without it
    write_study_page(page, key.study, key.category, shared, sorted(choices, key=lambda its: its.id))
    return Study(key.study, folder, page, place, len(choices), made)


def _require_alike(first: Sitting, second: Sitting) -> tuple[Path, ...]:
    """The training pictures that both share, by which participants know the concept.

    Raises:
        InputError: what they stand for, or how their pictures are made, differs in more than the method.
    """
    cards = (first.card, second.card)
    if first.project.root.resolve() == second.project.root.resolve():
        raise InputError("a study needs two different projects", "attnbooth eval --study ONE OTHER")
    if cards[0].document["files"] == cards[1].document["files"]:
        raise InputError(
            f"{first.project.root} and {second.project.root} hold the same concept: nobody could choose",
            "compare two that were trained differently",
        )
    categories = [card.placeholder.category for card in cards]
    if categories[0] != categories[1]:
        raise InputError(
            f"{first.project.root} is a {categories[0]} and {second.project.root} a {categories[1]}",
            "a study compares two ways to learn the same concept",
        )
    pictured = {durable.sha256(path) for path in second.training_pictures()}
    shared = tuple(path for path in first.training_pictures() if durable.sha256(path) in pictured)
    if not shared:
        raise InputError(
            f"{first.project.root} and {second.project.root} share no training picture: their tokens mean two things",
            "a study compares two ways to learn the same concept, so train both on the same pictures",
        )
    sizes = [(its.question.settings.width, its.question.settings.height) for its in (first, second)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{first.project.root} has {sizes[0][0]} pixels and {second.project.root} {sizes[1][0]}",
            "people would see that: train both with the same --resolution",
        )
    if first.question.groups != second.question.groups or first.question.settings != second.question.settings:
        raise InputError(
            f"the base models of {first.project.root} and {second.project.root} have other prompts or other settings",
            "compare concepts of the same base model",
        )
    return shared


def _key(sides: list[Sitting]) -> Key:
    """Opaque names for everything that the page will show."""
    first, second = sides
    question, placeholder = first.question, first.card.placeholder
    return Key(
        study=_opaque(),
        category=placeholder.category,
        a=_party(first),
        b=_party(second),
        questions=tuple(
            Question(
                id=_opaque(),
                group=group,
                prompt=prompt,
                shown=without_placeholder(prompt, placeholder),
                seed=seed,
                a=_opaque(),
                b=_opaque(),
            )
            for group, prompts in question.groups.items()
            for prompt in prompts
            for seed in question.seeds
        ),
        schema=1,
    )


def _party(its: Sitting) -> Party:
    card = its.card
    stage = card.stage(its.options.stage)
    return Party(
        project=str(its.project.root),
        run=card.run,
        stage=stage,
        step=card.steps(stage),
        method=str(card.document["plan"]["method"]),
        digest=str(card.document["digest"]),
    )


def _opaque() -> str:
    return secrets.token_hex(8)
