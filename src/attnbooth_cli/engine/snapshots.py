"""Snapshots: the concept as it was on the way, so that it can be scored over training and taken from an earlier step.

runs/NAME/snapshots/STAGE-STEP/      laid out as `concept/`; one every `train.snapshot_every` steps

The end of each stage needs no snapshot: `concept/` holds what every stage left.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from attnbooth_cli.engine import concept
from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.methods import STAGE_NAMES, StageName
from attnbooth_cli.engine.runs import RunFolder, only_writer
from attnbooth_cli.errors import DamagedError, InputError
from attnbooth_cli.events import Emit, Warned, ignore
from attnbooth_cli.project import durable
from attnbooth_cli.project.project import Project, open_project
from attnbooth_cli.project.shell import command


@dataclass(frozen=True)
class Moment:
    """A concept after `step` steps of `stage`; `card` is whose files hold it."""

    stage: StageName
    step: int
    card: Card

    @property
    def name(self) -> str:
        """`unet-000100`."""
        return snapshot_name(self.stage, self.step)


@dataclass(frozen=True)
class Taken:
    """What `take` did: the concept is now the moment `name`, and was `before` (None: there was none)."""

    run: str
    name: str
    before: str | None
    stage: StageName
    step: int


def snapshot_name(stage: StageName, step: int) -> str:
    """The name of a snapshot, and of any moment of a run."""
    return f"{stage}-{step:06d}"


def moments(project: Project, emit: Emit = ignore, *, whole: bool = False) -> tuple[Moment, ...]:
    """Every moment on disk of the run `concept/` comes from, in the order of training.

    Where there is no concept, because its run was stopped or diverged: of the newest run that has snapshots.

    Args:
        whole: Leave out snapshots whose weights are damaged, too, which takes as long as reading them.

    Raises:
        InputError: there is neither a concept nor a snapshot.
    """
    card = present(project)
    run = card.run if card else _newest_with_snapshots(project)
    cards = [card] if card else []
    for place in _snapshots(RunFolder(project, run).snapshots):
        try:
            its = concept.open_card(place, f"delete {place}")
            if whole:
                concept.verify(its, f"delete {place}")
            cards.append(its)
        except DamagedError as error:
            emit(Warned(f"skipped: {error.message}"))
    found: dict[str, Moment] = {}
    for one in cards:
        for stage in one.stages:
            moment = Moment(stage, one.steps(stage), one)
            found.setdefault(moment.name, moment)
    if not found:
        raise InputError(f"no snapshot of run {run} can be read", command("resume", project.root))
    return tuple(sorted(found.values(), key=lambda moment: (STAGE_NAMES.index(moment.stage), moment.step)))


def present(project: Project) -> Card | None:
    """The card of `concept/`; None where there is none that can be read."""
    try:
        return concept.read_card(project) if durable.present(project.concept).exists() else None
    except DamagedError:
        return None


def current(card: Card) -> str:
    """The name of the moment a concept is."""
    return snapshot_name(card.stages[-1], card.step)


def take(root: Path | str, name: str) -> Taken:
    """Makes an earlier moment the project's concept; what `concept/` held becomes a snapshot, so nothing is lost.

    Args:
        name: As `moments` names it; zeros before the step may be left out.

    Raises:
        InputError: there is no such moment, or nothing was trained yet.
        LockedError, DamagedError, ResourceError: see `errors`.
    """
    project, _ = open_project(Path(root))
    with only_writer(project):
        card = present(project)
        known = {moment.name: moment for moment in moments(project)}
        stage, _, step = name.partition("-")
        wanted = known.get(f"{stage}-{step:0>6}")
        if wanted is None:
            raise InputError(
                f"there is no snapshot {name} of run {next(iter(known.values())).card.run}",
                f"there are: {', '.join(known)}",
            )
        before = current(card) if card else None
        if wanted.name != before:
            if card:
                _keep(project, card)
            concept.publish_again(project.concept, wanted.card, wanted.stage)
        return Taken(wanted.card.run, wanted.name, before, wanted.stage, wanted.step)


def _keep(project: Project, card: Card) -> None:
    """Makes what `concept/` holds a snapshot, unless it is one, or is damaged and no use to anyone."""
    place = RunFolder(project, card.run).snapshots / current(card)
    if not place.exists():
        with contextlib.suppress(DamagedError):
            concept.publish_again(place, card, card.stages[-1])


def _newest_with_snapshots(project: Project) -> str:
    runs = sorted(path.name for path in project.runs.iterdir()) if project.runs.is_dir() else []
    found = [run for run in runs if _snapshots(RunFolder(project, run).snapshots)]
    if not found:
        raise InputError(f"{project.root} has no trained concept yet, and no snapshots", command("train", project.root))
    return found[-1]


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_name(path.name)) if folder.is_dir() else []


def _is_name(name: str) -> bool:
    return re.fullmatch(rf"({'|'.join(STAGE_NAMES)})-\d{{6,}}", name) is not None
