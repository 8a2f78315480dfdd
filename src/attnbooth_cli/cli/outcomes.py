"""What became of each of several projects: the table, or the JSON document, a command over them ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbooth_cli.cli.console import Console, printable
from attnbooth_cli.errors import BoothError
from attnbooth_cli.events import Finished
from attnbooth_cli.reports.units import duration

NOT_BEGUN = "not begun"
_FEW_WORDS = 24
"""Columns an error needs beside the rest of its row; in fewer it stands below."""


@dataclass(frozen=True)
class Outcome:
    """Of one project. A failure is kept as text, since the exception would hold on to the memory it arose in.

    Attributes:
        result: done, nothing to do, stopped, failed or not begun.
        seconds: From its beginning to its end, all attempts together.
    """

    result: str
    run: str | None = None
    seconds: float | None = None
    exit_code: int = 0
    error: str | None = None
    hint: str | None = None


def succeeded(event: Finished | None, seconds: float) -> Outcome:
    """Of a project that came to its end."""
    result = "nothing to do" if event is not None and event.nothing_to_do else "done"
    return Outcome(result, event.run if event else None, seconds)


def failed(failure: BoothError, run: str | None, seconds: float) -> Outcome:
    """Of one that did not."""
    result = "stopped" if failure.exit_code > 128 else "failed"
    return Outcome(result, run, seconds, failure.exit_code, failure.message, failure.hint)


def close(
    console: Console, projects: Sequence[Path], outcomes: Mapping[Path, Outcome], code: int, seconds: float
) -> None:
    """Says of every project what became of it; those without an outcome were not begun.

    Args:
        seconds: That the whole command took.
    """
    all_of_them = {project: outcomes.get(project, Outcome(NOT_BEGUN)) for project in projects}
    console.document(
        "summary",
        None,
        None,
        exit_code=code,
        seconds=round(seconds, 3),
        projects=[
            {
                "project": str(project),
                "run": outcome.run,
                "result": outcome.result,
                "seconds": None if outcome.seconds is None else round(outcome.seconds, 3),
                "exit_code": outcome.exit_code,
                "error": outcome.error,
                "hint": outcome.hint,
            }
            for project, outcome in all_of_them.items()
        ],
    )
    console.results(table(all_of_them, console.width))
    counts = Counter(outcome.result for outcome in all_of_them.values())
    console.result(f"{', '.join(f'{count} {result}' for result, count in counts.items())}; {duration(seconds)} in all")
    if counts.keys() - {"done", "nothing to do"}:
        console.message("the same command goes on with what is left")


def table(outcomes: Mapping[Path, Outcome], width: int) -> Iterator[str]:
    """Project, result, time and error, a row each."""
    names = [printable(str(project)) for project in outcomes]
    results = [f"failed ({its.exit_code})" if its.result == "failed" else its.result for its in outcomes.values()]
    times = ["" if its.seconds is None else duration(its.seconds) for its in outcomes.values()]
    columns = [max(map(len, column)) for column in ([*names, "project"], [*results, "result"], [*times, "time"])]
    rows = zip(names, results, times, (its.error for its in outcomes.values()), strict=True)
    for *cells, error in (("project", "result", "time", "error"), *rows):
        row = "  ".join(f"{cell:<{columns[k]}}" for k, cell in enumerate(cells))
        room = width - len(row) - 2
        words = printable(" ".join((error or "").split()))
        if words and room < _FEW_WORDS:
            yield row.rstrip()
            yield f"    {_cut(words, width - 4)}"
        else:
            yield f"{row}  {_cut(words, room) if words else ''}".rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3].rstrip()}..."
