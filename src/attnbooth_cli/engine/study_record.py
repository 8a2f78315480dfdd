"""The two files of a study: its key, which says whose each picture is, and the answers of one participant.

Answers come from outside, so nothing in them is believed: a size limit, a strict schema, then their sense (`tally`).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from attnbooth_cli.errors import InputError

MAX_BYTES = 50_000_000
"""Of either file: some hundred thousand questions."""
MAX_NAME = 200

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Party(_Strict):
    """One of the two concepts."""

    project: str
    run: str
    stage: str
    step: int
    method: str
    digest: str


class Question(_Strict):
    """Two pictures of one prompt and seed, by their opaque names."""

    id: Id
    group: str
    prompt: str
    shown: str
    seed: int
    a: Id
    b: Id


class Key(_Strict):
    """Whose each picture of a study is. Participants never get it."""

    kind: Literal["attnbooth study key"] = "attnbooth study key"
    version: Literal[1] = Field(1, alias="schema")
    study: Id
    category: str
    a: Party
    b: Party
    questions: Annotated[tuple[Question, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        pictures = [name for question in self.questions for name in (question.a, question.b)]
        if len(set(pictures)) < len(pictures) or len({its.id for its in self.questions}) < len(self.questions):
            raise ValueError("a name stands for two things")
        return self


class Answer(_Strict):
    """One choice."""

    question: Id
    left: Id
    right: Id
    chosen: Id


class Answers(_Strict):
    """What one participant chose."""

    kind: Literal["attnbooth study answers"]
    version: Literal[1] = Field(alias="schema")
    study: Id
    participant: Id
    name: Annotated[str, StringConstraints(max_length=MAX_NAME)] = ""
    answers: tuple[Answer, ...]


_RECORD: TypeAdapter[Key | Answers] = TypeAdapter(Annotated[Key | Answers, Field(discriminator="kind")])


def read_record(path: Path) -> Key | Answers:
    """Reads a key or answers.

    Raises:
        InputError: it cannot be read, is too large, or is neither.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise InputError(f"{path} is not a file", "name the answers that participants sent back")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}", "name the answers that participants sent back") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES // 1_000_000} MB", "leave it out: no answers are so large")
    try:
        return _RECORD.validate_json(data.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        raise InputError(
            f"{path} holds neither answers nor the key of a study: {_first(error)}",
            "leave it out, or ask its participant to download the answers again",
        ) from None


def _first(error: ValidationError) -> str:
    """What is wrong first, in few and printable characters: the file may hold anything."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"] if part not in (Key.__name__, Answers.__name__))
    text = f"{place}: {found['msg']}" if place else found["msg"]
    return "".join(character if character.isprintable() else "?" for character in text)[:150]
