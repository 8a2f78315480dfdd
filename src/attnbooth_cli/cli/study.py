"""`attnbooth eval --study` and `--tally`: a blind page for people, and what they preferred."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbooth_cli.cli.console import Console, printable
from attnbooth_cli.cli.lines import folded

if TYPE_CHECKING:
    from attnbooth_cli.engine.preference import Preference
    from attnbooth_cli.engine.question import EvalOptions
    from attnbooth_cli.engine.tally import Tally

FEW = 5
"""Of fewer people, no interval says much about others."""


def run_study(console: Console, projects: Sequence[Path], asked: Callable[[], EvalOptions], out: Path | None) -> int:
    """Writes the page and the key of a study of two projects.

    Args:
        asked: What the options say; called once torch may be loaded.
    """
    from attnbooth_cli.cli.progress import shown
    from attnbooth_cli.cli.signals import stop_at_once
    from attnbooth_cli.engine.study import make_study

    first, second = projects
    with stop_at_once(), shown(console) as emit:
        study = make_study(first, second, asked(), out=out, emit=emit)
    fields = dataclasses.asdict(study)
    console.document("study", None, None, study=fields.pop("id"), a=first, b=second, **fields)
    pairs = "1 question" if study.questions == 1 else f"{study.questions} questions"
    console.result(f"a study with {pairs}; give this page, and nothing else, to participants:")
    console.result(printable(f"  {study.page}"))
    console.result("keep the key, which says whose each picture is:")
    console.result(printable(f"  {study.key}"))
    console.result(printable(f"with their answers:  attnbooth eval --tally {shlex.quote(str(study.key))} ANSWERS..."))
    return 0


def run_tally(console: Console, files: Sequence[Path]) -> int:
    """Counts the answers of a study."""
    from attnbooth_cli.engine.tally import tally

    found = tally(files)
    parties = {"a": found.a.model_dump(), "b": found.b.model_dump()}
    console.document("tally", None, None, **{**dataclasses.asdict(found), **parties})
    for line in _lines(found):
        console.result(printable(line))
    if len(found.participants) < FEW:
        console.warning("with so few people, the interval says little about others")
    return 0


def _lines(found: Tally) -> Iterator[str]:
    its = found.overall
    yield f"B over A: {_percent(its.share)}, {its.chosen} of {its.answers} answers"
    method = "Wilson" if its.by == "wilson" else "pigeonhole bootstrap"
    yield f"  95 % interval {_percent(its.low)} to {_percent(its.high)} ({method}, the wider)"
    for name, party in (("A", found.a), ("B", found.b)):
        said = f"{party.project} ({party.method}, run {party.run}, after step {party.step} of stage {party.stage})"
        yield from folded(said, f"  {name}: ", "     ")
    yield f"  the picture on the left was chosen in {_percent(found.left)} of answers"
    people = len(found.participants)
    yield f"{people} {'participant' if people == 1 else 'participants'}, {found.questions} questions each"
    yield f"{'prompts':32}{'B over A':>10}{'95 % interval':>21}{'answers':>10}"
    for group, preference in found.groups.items():
        yield _row(group, preference)
    yield f"{'participant':32}{'B over A':>10}{'95 % interval':>21}{'answers':>10}"
    for person in found.participants:
        yield _row(f"{person.id[:8]} {person.name}".rstrip(), person.preference)


def _row(name: str, preference: Preference) -> str:
    short = printable(name if len(name) <= 30 else f"{name[:29]}…")
    between = f"{_percent(preference.low)} to {_percent(preference.high)}"
    return f"{short:32}{_percent(preference.share):>10}{between:>21}{preference.answers:>10}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
