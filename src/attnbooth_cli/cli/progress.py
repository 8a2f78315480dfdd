"""Draws engine events for people: one bar a stage on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.layout import path_lines, wrapped
from attnbooth_cli.events import (
    Advanced,
    Checkpointed,
    Event,
    Finished,
    Sampled,
    Snapshotted,
    StageFinished,
    StageStarted,
    Started,
    Stepped,
    Warned,
)
from attnbooth_cli.reports.units import duration

LINES_PER_STAGE = 5
"""How many progress lines a stage, or many pictures, get where there are no bars."""
MANY = 20
"""Of fewer pictures, none."""


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Event], None]]:
    """Yields a function that shows each event on stderr."""
    if not console.interactive:
        yield _Lines(console)
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    bars = Progress(
        *columns,
        console=RichConsole(stderr=True),
        refresh_per_second=4,
        redirect_stdout=False,  # results belong to stdout, whatever stderr shows
    )
    with bars as progress:
        yield _Bars(console, progress)


def plan_lines(event: Started) -> list[str]:
    """What will happen and how long it should take, before it starts."""
    stages = ", ".join(f"{name} ({steps} steps)" for name, steps in event.stages) or "none left"
    return [
        f"learning {event.token} ({event.category}) from {event.pictures} picture{'s' if event.pictures != 1 else ''}",
        *(["  a smoke test, which learns next to nothing"] if event.smoke else []),
        f"  on {event.base_model}, {event.resolution} pixels, {event.device}, {event.precision}",
        f"  stages: {stages}",
        *([f"  continuing from step {event.resumed_from}"] if event.resumed_from else []),
        *([f"  {_about(event.estimated_seconds)}, from a trial step"] if event.estimated_seconds else []),
    ]


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}" if seconds >= 1 else duration(seconds)


class _Lines:
    """Plain lines, few enough for a log file."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, event: Event) -> None:
        say = self.console.message
        match event:
            case Started():
                for line in plan_lines(event):
                    say(line)
            case Stepped() if event.step == event.steps or event.step % max(1, event.steps // LINES_PER_STAGE) == 0:
                say(f"{event.stage} {event.step}/{event.steps}: {losses(event)}, {event.seconds:.2f} s a step")
            case Checkpointed() | Snapshotted() if self.console.verbose:
                self.console.place("saved", event.path)
            case Sampled():
                self.console.place("sample:", event.path)
            case Advanced(done=done, total=total) if (
                done and total >= MANY and done % -(-total // LINES_PER_STAGE) == 0
            ):
                say(f"{event.what} {done}/{total}")
            case StageFinished():
                say(f"{event.stage} finished in {duration(event.seconds)}")
            case Warned():
                self.console.warning(event.message)


class _Bars:
    """Rich progress bars; messages appear above them."""

    def __init__(self, console: Console, progress: Any) -> None:
        self.console, self.progress = console, progress
        self.task: Any = None

    def __call__(self, event: Event) -> None:
        say = self._say
        match event:
            case Started():
                for line in plan_lines(event):
                    say(line)
            case StageStarted():
                self.task = self.progress.add_task(event.stage, total=event.steps, completed=event.step, losses="")
            case Stepped():
                self.progress.update(self.task, completed=event.step, losses=losses(event))
            case Checkpointed() | Snapshotted() if self.console.verbose:
                self._print(path_lines("saved", event.path, self.progress.console.width))
            case Sampled():
                self._print(path_lines("sample:", event.path, self.progress.console.width))
            case Warned():
                say(f"note: {event.message}")
            case Advanced():
                if self.task is None:
                    self.task = self.progress.add_task(event.what, total=event.total, losses="")
                self.progress.update(self.task, completed=event.done, total=event.total)
            case Finished():
                self.progress.refresh()

    def _say(self, text: str) -> None:
        self._print(wrapped(text, self.progress.console.width))

    def _print(self, lines: list[str]) -> None:
        for line in lines:  # by itself Rich would cut long words
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def losses(event: Stepped) -> str:
    """The terms of the objective."""
    terms = [f"diffusion {event.diffusion_loss:.4f}"]
    if event.attention_loss or not event.prior_loss:
        terms.append(f"attention {event.attention_loss:.2e}")
    if event.prior_loss:
        terms.append(f"prior {event.prior_loss:.4f}")
    return "  ".join(terms)
