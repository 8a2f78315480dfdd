"""Several projects at once: which ones, and the view of all of them while a cluster is at work."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import exit_code
from attnbooth_cli.cli.failures import explain
from attnbooth_cli.cli.outcomes import Outcome, close, failed, succeeded
from attnbooth_cli.cli.streams import BROKEN_PIPE, silence
from attnbooth_cli.engine.cluster import parse_resources, require_ray, train_many
from attnbooth_cli.engine.cluster_head import Crew
from attnbooth_cli.engine.cluster_worker import Work
from attnbooth_cli.errors import BoothError, InputError
from attnbooth_cli.events import Emit, Event, Finished, Started, Warned
from attnbooth_cli.project.project_lists import each_once, read_projects


def chosen_projects(console: Console, named: Sequence[Path] | None, listed: Path | None) -> list[Path]:
    """The projects of a command line, each once.

    Raises:
        InputError: there is none, or the list cannot be used.
    """
    projects = [*(named or ()), *(read_projects(listed) if listed else ())]
    if not projects:
        raise InputError("no project is named", "name one or more, or a list of them with --from")
    once, again = each_once(projects)
    for project in again:
        console.warning(f"{project} is named more than once")
    return once


def crew_of(executor: str, resources: str | None, retries: int) -> Crew | None:
    """Who does the work, None for this process.

    Raises:
        InputError: Ray is missing, or the resources are wrong or of no use.
    """
    if executor == "ray":
        require_ray()
        return Crew(parse_resources(resources or ""), retries)
    if resources is not None:
        raise InputError("--resources is for --executor ray", "add --executor ray, or leave it out")
    return None


def spread(
    console: Console, projects: list[Path], work: Work, crew: Crew, begin: Callable[[Path, Emit], object]
) -> int:
    """Does `work` with every project over a Ray cluster.

    Args:
        begin: What is done with each here, before any of them is sent out.
    """
    from attnbooth_cli.cli.crowd import shown_together
    from attnbooth_cli.cli.signals import stop_at_safe_points

    began = time.monotonic()
    runs: dict[Path, str] = {}
    outcomes: dict[Path, Outcome] = {}
    finished: dict[Path, list[Finished]] = {root: [] for root in projects}

    with stop_at_safe_points(console.message) as should_stop:
        ready = []
        for root in projects:
            if should_stop():
                break
            try:
                begin(root, _warnings(console, root))
                ready.append(root)
            except Exception as error:
                failure = explain(error)
                console.failure(failure, root)
                outcomes[root] = failed(failure, None, 0.0)
        refused: list[OSError] = []  # by stdout, whose reader has gone or whose disk is full
        with shown_together(console, len(projects), len(outcomes)) as view:

            def emit(root: Path, event: Event) -> None:
                said = reporter(console, root, lambda its: view.show(root, its), runs, finished[root])
                until_refused(said, refused)(event)

            def asked() -> int:
                return should_stop() or (BROKEN_PIPE - 128 if refused else 0)

            def ended(root: Path, failure: BoothError | None, seconds: float) -> None:
                if failure is None:
                    outcomes[root] = succeeded(finished[root][-1] if finished[root] else None, seconds)
                else:
                    outcomes[root] = failed(failure, runs.get(root), seconds)
                    unless_refused(lambda: console.failure(failure, root, runs.get(root)), refused)
                view.end(root, outcomes[root])

            stopped, trouble = should_stop(), 0
            if ready and not stopped:
                try:
                    stopped = train_many(ready, work, crew, emit=emit, ended=ended, should_stop=asked, explain=explain)
                    if refused:
                        raise refused[0]
                except BoothError as error:  # of the cluster, not of a project
                    console.failure(error)
                    trouble = error.exit_code
    in_order = [outcomes[root].exit_code for root in projects if root in outcomes]
    code = 128 + stopped if stopped else exit_code([*in_order, trouble])
    if outcomes:
        close(console, projects, outcomes, code, time.monotonic() - began)
    return code


def _warnings(console: Console, root: Path) -> Emit:
    def report(event: Event) -> None:
        if isinstance(event, Warned):
            console.warning(f"{root}: {event.message}")

    return report


def reporter(
    console: Console, root: Path, show: Callable[[Event], None], runs: dict[Path, str], finished: list[Finished]
) -> Emit:
    """Events to bars or lines and to the JSON stream; notes each project's run in `runs`, and how it `finished`."""

    def report(event: Event) -> None:
        show(event)
        if isinstance(event, Started | Finished):
            runs[root] = event.run
        if not isinstance(event, Warned):
            fields = {**dataclasses.asdict(event), "run": runs.get(root)}
            console.document(event.name, root, fields.pop("run"), **fields)
        if isinstance(event, Finished):
            finished.append(event)

    return report


def until_refused(emit: Emit, refused: list[OSError]) -> Emit:
    """The same, as `unless_refused`."""
    return lambda event: unless_refused(lambda: emit(event), refused)


def unless_refused(say: Callable[[], None], refused: list[OSError]) -> None:
    """Says something, until stdout fails for the first time; that is noted, and nothing more is said."""
    if refused:
        return
    try:
        say()
    except OSError as error:
        silence(sys.stdout)
        refused.append(error)
