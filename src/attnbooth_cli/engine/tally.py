"""`eval --tally`: what the participants of a study preferred. Imports nothing heavy."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnbooth_cli.engine.preference import Chosen, Preference, preference
from attnbooth_cli.engine.study_record import Answers, Key, Party, read_record
from attnbooth_cli.errors import InputError

KEY = "key.json"


@dataclass(frozen=True)
class Participant:
    """One person's preference; `name` is what they call themselves, if anything."""

    id: str
    name: str
    preference: Preference


@dataclass(frozen=True)
class Tally:
    """Preference for B over A.

    Attributes:
        groups: By group of prompts.
        left: Share of answers that chose the picture on the left, whoever's it was: far from a half, people did not
            look.
    """

    study: str
    a: Party
    b: Party
    questions: int
    overall: Preference
    groups: dict[str, Preference]
    participants: tuple[Participant, ...]
    left: float


def tally(paths: Sequence[Path]) -> Tally:
    """Counts answers.

    Args:
        paths: Files of answers, and the study's key unless it lies beside one of them.

    Raises:
        InputError: a file is damaged, of another study, or of a participant that is counted already.
    """
    records = [(path, read_record(path)) for path in paths]
    answers = [(path, record) for path, record in records if isinstance(record, Answers)]
    if not answers:
        raise InputError("there are no answers among the files", "name the files that participants sent back")
    key = _one_key([(path, record) for path, record in records if isinstance(record, Key)] or _beside(answers), answers)
    seen: dict[str, Path] = {}
    for path, its in answers:
        if its.participant in seen:
            raise InputError(
                f"{path} and {seen[its.participant]} are answers of the same participant", "leave out one of them"
            )
        seen[its.participant] = path
    chosen: Chosen = np.array([_chosen(path, its, key) for path, its in answers])
    group_of = np.array([question.group for question in key.questions])
    lefts = [answer.chosen == answer.left for _, its in answers for answer in its.answers]
    return Tally(
        key.study,
        key.a,
        key.b,
        len(key.questions),
        preference(chosen),
        {str(group): preference(chosen[:, group_of == group]) for group in dict.fromkeys(group_of)},
        tuple(
            Participant(its.participant, its.name, preference(row[None]))
            for (_, its), row in zip(answers, chosen, strict=True)
        ),
        sum(lefts) / len(lefts),
    )


def _beside(answers: Sequence[tuple[Path, Answers]]) -> list[tuple[Path, Key]]:
    """The key of these answers' study, where it lies in the folder of one of them."""
    found = []
    for path in dict.fromkeys(path.with_name(KEY) for path, _ in answers):
        with contextlib.suppress(InputError):  # a file of that name may be anything
            record = read_record(path)
            if isinstance(record, Key) and record.study in {its.study for _, its in answers}:
                found.append((path, record))
    return found


def _one_key(keys: Sequence[tuple[Path, Key]], answers: Sequence[tuple[Path, Answers]]) -> Key:
    """The one key there is, of the study that all answers belong to."""
    if not keys:
        raise InputError(
            f"there is no {KEY} among the files or beside the answers", "name the one that --study wrote, too"
        )
    (first, key), *others = keys
    for path, other in others:
        if other != key:
            raise InputError(f"{first} and {path} are keys of different studies", "tally one study at a time")
    for path, its in answers:
        if its.study != key.study:
            raise InputError(f"{path} belongs to another study than {first}", "tally one study at a time")
    return key


def _chosen(path: Path, its: Answers, key: Key) -> list[bool]:
    """Whether B's picture was chosen, question by question of the key.

    Raises:
        InputError: a question is missing, answered twice or not of this study, or its pictures are not.
    """
    questions = {question.id: question for question in key.questions}
    found: dict[str, bool] = {}
    for answer in its.answers:
        question = questions.get(answer.question)
        pair = question and {question.a, question.b}
        if question is None or {answer.left, answer.right} != pair or answer.chosen not in pair:
            raise InputError(f"{path} answers something that this study does not ask", "leave it out: it was changed")
        if answer.question in found:
            raise InputError(f"{path} answers a question twice", "leave it out: it was changed")
        found[answer.question] = answer.chosen == question.b
    if missing := len(questions) - len(found):
        raise InputError(f"{path} leaves {missing} of {len(questions)} questions open", "leave it out: it is not whole")
    return [found[question.id] for question in key.questions]
