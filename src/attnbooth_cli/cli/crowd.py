"""The progress of many concepts in one view: bars of those at work on a terminal, lines that name theirs elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.layout import wrapped
from attnbooth_cli.cli.outcomes import Outcome
from attnbooth_cli.cli.progress import losses
from attnbooth_cli.events import Event, Sampled, StageFinished, StageStarted, Started, Stepped, Warned
from attnbooth_cli.reports.units import duration

NAME_COLUMNS = 24
"""Of a project beside its bar; the end of its path is what tells it from others."""


class View(Protocol):
    """Shows what happens to each of many projects."""

    def show(self, root: Path, event: Event) -> None:
        """An event of one of them."""

    def end(self, root: Path, outcome: Outcome) -> None:
        """One is over."""


@contextmanager
def shown_together(console: Console, total: int, ended: int) -> Iterator[View]:
    """Yields what shows events on stderr.

    Args:
        total: How many projects there are.
        ended: How many of them are over already.
    """
    if not console.interactive:
        yield _Lines(console, total, ended)
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]:<9}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bars = Progress(*columns, console=RichConsole(stderr=True), refresh_per_second=4, redirect_stdout=False)
    with bars as progress:
        yield _Bars(console, progress, total, ended)


class _Lines:
    """A line when a concept or a stage begins or ends; `-v` also tells of steps and samples."""

    def __init__(self, console: Console, total: int, ended: int) -> None:
        self.console, self.total, self.ended = console, total, ended

    def show(self, root: Path, event: Event) -> None:
        match event:
            case Started():
                stages = ", ".join(f"{name} {steps}" for name, steps in event.stages) or "none left"
                goes_on = f", continuing from step {event.resumed_from}" if event.resumed_from else ""
                self.console.message(f"{root}: learning {event.token} on {event.device} ({stages}){goes_on}")
            case Stepped() if self.console.verbose and event.step == event.steps:
                self.console.message(f"{root}: {event.stage} {event.step}/{event.steps}: {losses(event)}")
            case StageFinished():
                self.console.message(f"{root}: {event.stage} finished in {duration(event.seconds)}")
            case Sampled() if self.console.verbose:
                self.console.message(f"{root}: sample: {event.path}")
            case Warned():
                self.console.warning(f"{root}: {event.message}")

    def end(self, root: Path, outcome: Outcome) -> None:
        self.ended += 1
        self.console.message(f"{root}: {outcome.result} ({self.ended} of {self.total})")


class _Bars:
    """One bar for all, and one for each concept at work."""

    def __init__(self, console: Console, progress: Any, total: int, ended: int) -> None:
        self.console, self.progress = console, progress
        self.tasks: dict[Path, Any] = {}
        self.all = progress.add_task("concepts", total=total, completed=ended, stage="")

    def show(self, root: Path, event: Event) -> None:
        match event:
            case Started():
                if root not in self.tasks:
                    self.tasks[root] = self.progress.add_task(_short(root), total=None, stage="")
            case StageStarted():
                self.progress.update(self.tasks[root], total=event.steps, completed=event.step, stage=event.stage)
            case Stepped():
                self.progress.update(self.tasks[root], completed=event.step)
            case Warned():
                self._say(f"note: {root}: {event.message}")

    def end(self, root: Path, outcome: Outcome) -> None:
        if root in self.tasks:
            self.progress.remove_task(self.tasks.pop(root))
        self.progress.advance(self.all)
        if outcome.exit_code == 0:  # a failure has been told
            took = "" if outcome.seconds is None else f" in {duration(outcome.seconds)}"
            self._say(f"{root}: {outcome.result}{took}")

    def _say(self, text: str) -> None:
        for line in wrapped(text, self.progress.console.width):
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _short(root: Path) -> str:
    name = str(root)
    return name if len(name) <= NAME_COLUMNS else f"...{name[3 - NAME_COLUMNS :]}"
