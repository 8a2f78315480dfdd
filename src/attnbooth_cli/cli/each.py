"""Commands over several projects: go on past failures, and end with one exit code."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.failures import explain
from attnbooth_cli.errors import BoothError, StoppedError


def each_project(
    console: Console,
    projects: list[Path],
    work: Callable[[Path], object],
    failed: Callable[[Path, BoothError], Any] | None = None,
) -> int:
    """Calls `work` with every project.

    Args:
        failed: What to do with a failure; by default it is reported at once.

    Returns:
        0 if all went well; 1 if any failed unexpectedly; else the first failure's exit code; at once the signal's when
        one stops the program.
    """
    report = failed or (lambda root, failure: console.failure(failure, root))
    codes = []
    for number, root in enumerate(projects):
        if number:
            gc.collect()  # what failed before can hold on to all it had allocated, in circles
        if len(projects) > 1:
            console.message(f"== {root}")
        try:
            work(root)
        except StoppedError as error:
            report(root, error)
            return error.exit_code
        except BrokenPipeError:
            raise
        except Exception as error:
            failure = explain(error)
            if len(projects) > 1 and console.quiet:
                console.name(root)
            report(root, failure)
            codes.append(failure.exit_code)
            del failure
    return exit_code(codes)


def exit_code(codes: Sequence[int]) -> int:
    """Of a command over several projects, from theirs in order: 1 if any is, else the first failure's."""
    return 1 if 1 in codes else next((code for code in codes if code), 0)


def in_one_document(
    console: Console, results: list[dict[str, Any]], projects: int
) -> Callable[[Path, BoothError], None]:
    """A failure goes to stderr and, in JSON, into the one document (or is that document, for a single project)."""

    def report(root: Path, failure: BoothError) -> None:
        alone = projects == 1 and not results
        Console(console.json and alone, console.quiet, console.verbose).failure(failure, root)
        error = {"exit_code": failure.exit_code, "message": failure.message, "hint": failure.hint}
        if results and results[-1]["project"] == str(root):
            results[-1]["error"] = error
        elif not alone:
            results.append({"project": str(root), "error": error})

    return report
