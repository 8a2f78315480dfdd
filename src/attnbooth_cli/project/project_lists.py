"""Which projects a command is about: those it names, and those in a list. Never imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attnbooth_cli.errors import InputError
from attnbooth_cli.project.line_files import read_lines

STANDARD_INPUT = Path("/dev/stdin")
FORM = "one project folder a line"


def read_projects(path: Path) -> list[Path]:
    """Project folders from a text file (`-`: standard input), one a line; blank lines and # comments do not count.

    Folders mean what they would mean on the command line: relative ones are looked for in the current folder, as tar,
    xargs and git do with theirs, since most lists come out of ls or find.

    Raises:
        InputError: unreadable, too large, without any project, or with folders that lie beside the list and not here.
    """
    lines = read_lines(STANDARD_INPUT if str(path) == "-" else path, FORM)
    if not lines:
        raise InputError(f"{path} names no project", FORM)
    projects = [Path(line) for line in lines]
    if not any(project.exists() for project in projects) and (path.parent / projects[0]).is_dir():
        raise InputError(
            f"the folders in {path} are not in the current folder, but beside the list",
            f"run the command in {path.parent.resolve()}, or list absolute paths",
        )
    return projects


def each_once(projects: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Projects in their order without those that were there before under any name, and these."""
    seen: set[str] = set()
    once: list[Path] = []
    again: list[Path] = []
    for project in projects:
        place = os.path.realpath(project)
        (again if place in seen else once).append(project)
        seen.add(place)
    return once, again
