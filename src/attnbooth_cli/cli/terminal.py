"""What the terminal on stdout can show: it is asked once, briefly, and only when nobody is typing.

The answers come on the terminal's input, where a shell would take them for typed text. So one question that every
terminal answers (device attributes) goes last, and everything up to its answer is read away.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

Protocol = Literal["sixel", "kitty"]

PATIENCE = 0.7
"""Seconds for the answers, which may come over ssh; a terminal that gives none has none to give."""

_KITTY = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
_NAME, _CELL, _ATTRIBUTES = "\x1b[>q", "\x1b[16t", "\x1b[c"
_CLEAN = "\r\x1b[K"  # takes away what a terminal that does not understand may have printed
_LAST = re.compile(rb"\x1b\[\?([\d;]*)c")
# Terminals that place a kitty picture at characters, which is how it is drawn; others only claim the protocol.
_PLACES = re.compile(rb"\x1bP>\|(kitty|ghostty)", re.IGNORECASE)
_CELL_SIZE = re.compile(rb"\x1b\[6;(\d+);(\d+)t")


@dataclass(frozen=True)
class Graphics:
    """How pictures can be shown here.

    Attributes:
        cell: Pixels of a character, width and height.
        columns, rows: Characters of the window.
    """

    protocol: Protocol
    cell: tuple[int, int]
    columns: int
    rows: int


def graphics() -> Graphics | None:
    """What stdout's terminal can show; None where it shows no pictures, or cannot be asked.

    Raises:
        OSError, ImportError: there is no terminal, or none of this kind.
    """
    import fcntl
    import struct
    import termios

    answer = _answers()
    if answer is None:
        return None
    protocol, cell = answer
    window = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    rows, columns, width, height = struct.unpack("4H", window)
    if not rows or not columns:
        return None
    if cell is None and (width < columns or height < rows):
        return None
    return Graphics(protocol, cell or (width // columns, height // rows), columns, rows)


@cache
def _answers() -> tuple[Protocol, tuple[int, int] | None] | None:
    """The protocol to use, and the size of a character where the terminal tells it."""
    with _listening() as terminal:
        if terminal is None:
            return None
        os.write(terminal, (_questions() + _CLEAN).encode())
        said = _read(terminal)
    attributes = _LAST.search(said)
    size = _CELL_SIZE.search(said)
    cell = (int(size[2]), int(size[1])) if size and int(size[1]) and int(size[2]) else None
    if attributes and b"4" in attributes[1].split(b";"):
        return "sixel", cell
    if attributes and b"\x1b_Gi=31;OK" in said and _PLACES.search(said):
        return "kitty", cell
    return None


def _questions() -> str:
    # tmux and screen would take kitty's question for the title of the window.
    multiplexed = "TMUX" in os.environ or os.environ.get("TERM", "").startswith(("screen", "tmux"))
    return ("" if multiplexed else _KITTY + _NAME) + _CELL + _ATTRIBUTES


@contextlib.contextmanager
def _listening() -> Iterator[int | None]:
    """The terminal of stdout, its input unbuffered and without echo; None when it is not ours to read from."""
    import termios

    terminal = os.open(os.ttyname(sys.stdout.fileno()), os.O_RDWR | os.O_NOCTTY)
    try:
        if os.tcgetpgrp(terminal) != os.getpgrp():  # in the background, touching the terminal would stop us
            yield None
            return
        before = termios.tcgetattr(terminal)
        quiet = termios.tcgetattr(terminal)
        quiet[3] &= ~(termios.ICANON | termios.ECHO)
        try:
            termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
            typed, _, _ = select.select([terminal], [], [], 0)
            yield None if typed else terminal  # what was typed ahead is for the shell
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    finally:
        os.close(terminal)


def _read(terminal: int) -> bytes:
    """Everything up to the last answer, or what came in time."""
    said, end = b"", time.monotonic() + PATIENCE
    while not _LAST.search(said) and (left := end - time.monotonic()) > 0:
        readable, _, _ = select.select([terminal], [], [], left)
        if readable:
            said += os.read(terminal, 1024)
    return said
