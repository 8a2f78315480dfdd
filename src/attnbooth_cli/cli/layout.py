"""Lines that fit the terminal: prose between words, commands so that they can still be pasted, settings in columns.

A path or another long word is never cut: it stands on a line of its own and may stick out. In a pipe or a file
everything is said in one line, however long, for those who search it.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from attnbooth_cli.engine.forecast import Outlook

WIDTH = 80
"""Columns of a terminal that does not say."""
UNBOUNDED = 1_000_000
"""Columns of what is no terminal."""
NARROWEST = 40
"""Below this, lines are left to the terminal."""
_VALUE_WIDTH = 14
"""Of most settings' values; longer ones push their origin to the next line."""
_SHELL_WORDS = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")


def width_of(stream: TextIO) -> int:
    """Columns of what a stream is written to."""
    return max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns) if stream.isatty() else UNBOUNDED


def wrapped(text: str, width: int) -> list[str]:
    """A line as one or more, all but the first indented by four more than the text is."""
    if len(text) <= width:
        return [text]
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(text, width, subsequent_indent=indent + "    ", break_long_words=False, break_on_hyphens=False)


def command_lines(label: str, command: str, width: int) -> list[str]:
    """A labelled command; if too long for the label's line it begins below, and goes on after backslashes."""
    if len(f"{label} {command}") <= width:
        return [f"{label} {command}"]
    lines, indent = [], "  "
    line = indent
    for word in _SHELL_WORDS.findall(command):
        if line.strip() and len(f"{line}{word} \\") > width:
            lines.append(f"{line}\\")
            line = indent + "  "
        line += f"{word} "
    return [label.rstrip(), *lines, line.rstrip()]


def path_lines(label: str, path: object, width: int) -> list[str]:
    """A labelled path, which stands below its label if it is too long."""
    return [f"{label} {path}"] if len(f"{label} {path}") <= width else [label.rstrip(), f"  {path}"]


def about(path: object, text: str, width: int) -> list[str]:
    """What is said about a path, behind it or, where that is too long, below it."""
    if len(f"{path}: {text}") <= width:
        return [f"{path}: {text}"]
    return [f"{path}:", *wrapped(f"  {text}", width)]


def settings_lines(table: Mapping[str, tuple[Any, str]], width: int) -> Iterator[str]:
    """Keys, values and where these come from, in columns."""
    keys = max(len(key) for key in table)
    for key, (value, origin) in table.items():
        line = f"{key:<{keys}}  {value!s:<{_VALUE_WIDTH}}  {origin}"
        if len(line) <= width and "\n" not in line:
            yield line
            continue
        indent = " " * (keys + 2)
        room = max(width - len(indent), _VALUE_WIDTH)
        first, *more = textwrap.wrap(str(value), room, break_long_words=False, break_on_hyphens=False) or [""]
        yield f"{key:<{keys}}  {first}".rstrip()
        yield from (indent + part for part in more)
        yield from (indent + part for part in textwrap.wrap(f"from {origin}", room, break_long_words=False))


def outlook_lines(expected: Outlook) -> Iterator[str]:
    """Memory and time a run will need, and what that was told by."""
    from attnbooth_cli.reports.units import duration

    if expected.forecast is None:
        yield "memory:  not known beforehand for this kind of base model"
        return
    largest = max(expected.forecast.stages, key=lambda stage: stage.peak)
    free = f"; {expected.free / 1e9:.1f} GB are free" if expected.free is not None else ""
    yield f"memory:  about {largest.peak / 1e9:.1f} GB at most, in stage {largest.name} (float32){free}"
    if expected.free is not None and largest.peak > expected.free:
        smallest = f"{expected.forecast.smallest / 1e9:.1f} GB"
        yield f"         too much at once: train.micro_batch_size=1 needs about {smallest}"
    if expected.seconds is None or expected.rate is None:
        yield "time:    not known before a first run here; train tells when it begins"
        return
    yield f"time:    about {duration(expected.seconds)} of steps, at {expected.rate.operations / 1e9:.1f} GFLOP/s,"
    yield f"         measured with {expected.rate.model} ({expected.rate.place})"
