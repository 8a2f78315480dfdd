"""`state.json`: the index of runs and of the current concept. What it says can be rebuilt from `runs/` and `concept/`.

Never imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from attnbooth_cli.project import durable
from attnbooth_cli.project.documents import read_document, read_json_object, read_text
from attnbooth_cli.project.project import Project, is_plain_name
from attnbooth_cli.project.schema import present, up_to_date

Status = Literal["unfinished", "diverged", "done"]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        digest: Of its plan; runs with the same digest make the same concept.
        stages: The stages that are complete.
        until: The last stage it was last asked for, None for all; a resumed run stops there too.
        status: `done` once everything it was asked for is in `concept/`.
    """

    name: str
    digest: str
    smoke: bool
    status: Status
    stages: tuple[str, ...] = ()
    created: str = ""
    until: str | None = None


@dataclass(frozen=True)
class State:
    """Attributes:
    runs: In the order they were begun.
    concept_run: The run whose result is in `concept/`.
    """

    runs: tuple[Run, ...] = ()
    concept_run: str | None = None

    @property
    def unfinished(self) -> tuple[Run, ...]:
        """The runs to go on with. One that was begun before the last that is done was given up for it; smoke tests are
        none.
        """
        done = max((place for place, run in enumerate(self.runs) if run.status == "done" and not run.smoke), default=-1)
        return tuple(run for run in self.runs[done + 1 :] if run.status == "unfinished" and not run.smoke)

    def with_run(self, run: Run) -> State:
        """This state with `run` added, or put in the place of the one with its name."""
        names = [other.name for other in self.runs]
        if run.name not in names:
            return replace(self, runs=(*self.runs, run))
        return replace(self, runs=tuple(run if other.name == run.name else other for other in self.runs))


def read_state(project: Project) -> State:
    """Reads `state.json`; a missing or damaged one is rebuilt from the runs.

    Raises:
        InputError: written by a newer version of attnbooth.
    """
    try:
        document = up_to_date("state", read_document(project.state), project.state)
        del document["schema"]
        state = TypeAdapter(State).validate_python(document)
        named = (*(run.name for run in state.runs), *filter(None, [state.concept_run]))
        if not all(is_plain_name(name) for name in named):
            raise ValueError("a run's name is a path")
        return state
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return _rebuilt(project)


def write_state(project: Project, state: State) -> None:
    """Replaces `state.json`, durably.

    Raises:
        ResourceError: it cannot be written.
    """
    durable.write_json(project.state, {"schema": present("state"), **dataclasses.asdict(state)})


def new_run_name(project: Project, label: str) -> str:
    """A run name that sorts by time and is not taken: `001-attndreambooth-fast`."""
    taken = [path.name.partition("-")[0] for path in project.runs.glob("*-*")] if project.runs.is_dir() else []
    number = max((int(prefix) for prefix in taken if prefix.isdecimal()), default=0) + 1
    return f"{number:03d}-{label}"


def now() -> str:
    """The present in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _rebuilt(project: Project) -> State:
    concept = read_json_object(project.concept / "concept.json") or {}
    run_of_concept, its_stages = concept.get("run"), concept.get("stages")
    state = State(concept_run=run_of_concept if is_plain_name(run_of_concept) else None)
    known = tuple(name for name in its_stages if isinstance(name, str)) if isinstance(its_stages, list) else ()
    for path in sorted(project.runs.glob("*/plan.json")) if project.runs.is_dir() else []:
        document = read_json_object(path)
        if document is None or not isinstance(document.get("digest"), str):
            continue
        with contextlib.suppress(ValueError):  # what it lacks is known when its plan is needed
            document = up_to_date("plan", document, path)
        name = path.parent.name
        stages, done = _logged(path.parent / "events.jsonl")
        run = Run(
            name=name,
            digest=document["digest"],
            smoke=bool(document.get("smoke")),
            status="done" if done or name == state.concept_run else "unfinished",
            stages=max(stages, known if name == state.concept_run else (), key=len),
            created=str(document.get("created", "")),
        )
        state = state.with_run(run)
    return state


def _logged(path: Path) -> tuple[tuple[str, ...], bool]:
    """What a run's event log says: the stages it finished, in order, and whether it came to its end."""
    stages: dict[str, None] = {}
    last = None
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError):
        return (), False
    for line in lines:
        try:
            event = json.loads(line)
            last = event["event"]
            if last == "stage" and event["status"] == "finished":
                stages[str(event["stage"])] = None
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line cut off by a crash
    return tuple(stages), last == "done"
