"""Runs on disk: their folders, their records, and which one a command goes on with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from attnbooth_cli import __version__
from attnbooth_cli.engine import concept
from attnbooth_cli.engine.changes import differences
from attnbooth_cli.engine.devices import is_main_process
from attnbooth_cli.engine.plan import Plan, plan_from_json, plan_json
from attnbooth_cli.errors import DamagedError, InputError
from attnbooth_cli.events import Emit, Event
from attnbooth_cli.project import durable
from attnbooth_cli.project.documents import read_json_object
from attnbooth_cli.project.lock import locked
from attnbooth_cli.project.project import Project, require_inside
from attnbooth_cli.project.schema import present, up_to_date
from attnbooth_cli.project.shell import command
from attnbooth_cli.project.state import Run, State, new_run_name, now, read_state, write_state


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its things."""

    project: Project
    name: str

    @property
    def root(self) -> Path:
        """`runs/NAME`."""
        return self.project.runs / self.name

    @property
    def plan(self) -> Path:
        """The resolved plan."""
        return self.root / "plan.json"

    @property
    def checkpoints(self) -> Path:
        """Resumable states inside stages."""
        return self.root / "checkpoints"

    @property
    def stages(self) -> Path:
        """The result of each finished stage."""
        return self.root / "stages"

    @property
    def snapshots(self) -> Path:
        """The concept as it was on the way."""
        return self.root / "snapshots"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.root / "report.html"

    @property
    def events(self) -> Path:
        """Everything the run reported, one JSON object a line."""
        return self.root / "events.jsonl"


@contextlib.contextmanager
def only_writer(project: Project) -> Iterator[None]:
    """The project's lock, which the main process holds for all; what an interrupted run left half-done is put right.

    Raises:
        LockedError, ResourceError: see `errors`.
    """
    if not is_main_process():
        yield
        return
    with locked(project.root):
        durable.recover_directory(project.concept)
        for folder in (project.runs, project.root / "images"):
            durable.remove_temporaries(folder, older_than=0)
        durable.remove_temporaries(project.root, older_than=0, below=False)
        durable.remove_temporaries(project.root, durable.ABANDONED)  # others may be generating and scoring
        yield


def read_plan(folder: RunFolder) -> Plan:
    """The plan a run was begun with.

    Raises:
        DamagedError: it is missing or damaged.
        InputError: a newer version wrote it, or a link in the run leads out of the project.
    """
    if folder.root.is_dir():
        require_inside(folder.project, (folder.root, *folder.root.iterdir()))
    try:
        document = up_to_date("plan", read_json_object(folder.plan) or {}, folder.plan)
        return plan_from_json(json.dumps(document["plan"]), str(folder.plan))
    except (KeyError, ValueError):
        raise DamagedError(
            f"{folder.plan} is missing or damaged", f"begin again: {command('train', folder.project.root, '--restart')}"
        ) from None


def base_files(folder: RunFolder) -> object:
    """The hashes of the base model's files that a run was begun with; None where it does not say."""
    return (read_json_object(folder.plan) or {}).get("base_files")


def run_to_continue(project: Project, state: State, plan: Plan) -> Run | None:
    """The run `train` goes on with: one with this plan, finished or not; None to begin a new one, which a smoke test,
    that is to see whether everything works here and now, always does.

    Raises:
        InputError: an unfinished run with other settings would be left behind, or the concept of a later one replaced.
    """
    if plan.smoke:
        return None
    same = [run for run in state.runs if run.digest == plan.digest and (project.runs / run.name).is_dir()]
    done = [run for run in state.runs if not run.smoke and is_current(project, run)]
    if same and not (done and state.runs.index(done[-1]) > state.runs.index(same[-1])):
        return same[-1]
    others = state.unfinished
    if done and not others:
        changed = differences(read_plan(RunFolder(project, done[-1].name)), plan)
        raise InputError(
            f"{project.root} is trained already, with other settings ({'; '.join(changed[:4])})",
            "the same command with --restart trains again and then replaces concept/; "
            "to keep both, make another project",
        )
    if others:
        changed = differences(read_plan(RunFolder(project, others[-1].name)), plan)
        raise InputError(
            f"{project.root} has an unfinished run {others[-1].name} with other settings ({'; '.join(changed[:4])})",
            f"{command('resume', project.root)} continues it; "
            f"{command('train', project.root, '--restart')} begins anew",
        )
    return None


def new_run(project: Project, plan: Plan, base_files: Mapping[str, str], *, fast: bool) -> Run:
    """Begins a run: its folder, its plan and its entry in the index.

    Args:
        base_files: Hashes of the base model's files (`preparation.file_hashes`).

    Raises:
        ResourceError: it cannot be written.
    """
    label = plan.method + ("-smoke" if plan.smoke else "-fast" if fast else "")
    run = Run(new_run_name(project, label), plan.digest, plan.smoke, "unfinished", created=now())
    folder = RunFolder(project, run.name)
    packages = ("torch", "diffusers", "transformers", "accelerate")
    durable.write_json(
        folder.plan,
        {
            "schema": present("plan"),
            "created": run.created,
            "digest": run.digest,
            "smoke": run.smoke,
            "plan": json.loads(plan_json(plan)),
            "base_files": dict(base_files),
            "versions": {
                "attnbooth": __version__,
                **{name: version(name) for name in packages},
                "python": platform.python_version(),
            },
            "threads": torch.get_num_threads(),
        },
    )
    record(project, run)
    return run


def record(project: Project, run: Run, concept_run: str | None = None) -> None:
    state = read_state(project).with_run(run)
    write_state(project, replace(state, concept_run=concept_run or state.concept_run))


def is_current(project: Project, run: Run) -> bool:
    """Whether `concept/` holds the result of a run, every file whole.

    A smoke test's is put there only where there is no real one.
    """
    card = read_json_object(project.concept / concept.CARD) or {}
    if run.smoke or card.get("run") != run.name:
        return bool(card) and run.smoke
    try:
        concept.verify(concept.read_card(project), "")
    except DamagedError:
        return False
    return True


def logged(folder: RunFolder, emit: Emit) -> Emit:
    """Also appends every event to the run's `events.jsonl`."""

    def report(event: Event) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": event.name, **dataclasses.asdict(event)})
        with durable.explained_write(folder.events), folder.events.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        emit(event)

    return report
