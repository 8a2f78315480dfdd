"""Where output goes: results to stdout, progress and messages to stderr, JSON when asked for."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attnbooth_cli.cli.layout import path_lines, width_of, wrapped
from attnbooth_cli.errors import BoothError

SCHEMA = 1
"""Of the JSON documents on stdout."""


def printable(text: str) -> str:
    """Text from a file as a terminal may have it: without control characters, which could do anything to it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def harmless(text: str) -> str:
    """Text as a terminal may have it, its line breaks kept: what a stranger's project says may hold any character."""
    return "".join(
        character if character == "\n" or unicodedata.category(character) != "Cc" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


@dataclass(frozen=True)
class Console:
    """How one command speaks."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def interactive(self) -> bool:
        """Whether bars and colour are welcome: stderr is a terminal and nobody said no."""
        return (
            sys.stderr.isatty()
            and "NO_COLOR" not in os.environ
            and os.environ.get("TERM") != "dumb"
            and not self.json
            and not self.quiet
        )

    def result(self, text: str) -> None:
        """A line of the command's result, for people."""
        if not self.json:
            print(harmless(text), flush=True)

    def results(self, lines: Iterable[str]) -> None:
        """Several such lines."""
        for line in lines:
            self.result(line)

    @property
    def width(self) -> int:
        """Columns for results."""
        return width_of(sys.stdout)

    def document(self, event: str, project: object, run: str | None, **fields: Any) -> None:
        """One JSON object on stdout."""
        if self.json:
            head = {"schema": SCHEMA, "event": event, "project": None if project is None else str(project), "run": run}
            print(json.dumps({**head, **fields}, ensure_ascii=False, default=str), flush=True)

    def message(self, text: str) -> None:
        """Something the person should know, on stderr: wrapped for a terminal, one line for a file."""
        if not self.quiet:
            _say(harmless(text))

    def place(self, label: str, path: object) -> None:
        """A message that says where something is."""
        if not self.quiet:
            print(harmless("\n".join(path_lines(label, path, width_of(sys.stderr)))), file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        """A message that something may not be as the person thinks."""
        self.message(f"note: {text}")

    def name(self, project: object) -> None:
        """Says which project an error is of, where the message that work on it began was not wanted."""
        _say(f"== {printable(str(project))}")

    def failure(self, error: BoothError, project: object = None, run: str | None = None) -> None:
        """An error, with what to do about it as the last line; also as JSON when asked for."""
        with contextlib.suppress(OSError):  # stdout may be what failed
            self.document("error", project, run, exit_code=error.exit_code, message=error.message, hint=error.hint)
        if self.verbose:
            traceback.print_exception(error, file=sys.stderr)
        word = "stopped" if error.exit_code > 128 else "error"
        _say(f"{word}: {printable(' '.join(error.message.splitlines()))}")
        if error.hint:
            _say(f"hint: {printable(error.hint)}", whole="attnbooth " in error.hint)


def _say(text: str, *, whole: bool = False) -> None:
    """To stderr; `whole` leaves a command in one piece that can be pasted."""
    lines = [text] if whole else wrapped(text, width_of(sys.stderr))
    print("\n".join(lines), file=sys.stderr, flush=True)
