"""A terminal for tests: a program runs on a pty, and what it asks is answered as a terminal of some kind would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass

ATTRIBUTES, CELL, NAME, GRAPHICS = b"\x1b[c", b"\x1b[16t", b"\x1b[>q", b"a=q"
SIXEL = {ATTRIBUTES: b"\x1b[?62;4;22c", CELL: b"\x1b[6;20;10t", NAME: b"\x1bP>|foot(1.16)\x1b\\"}
KITTY = {
    ATTRIBUTES: b"\x1b[?62;52;c",
    CELL: b"\x1b[6;20;10t",
    NAME: b"\x1bP>|kitty(0.35.2)\x1b\\",
    GRAPHICS: b"\x1b_Gi=31;OK\x1b\\",
}
PLAIN = {ATTRIBUTES: b"\x1b[?1;2c"}
SILENT: Mapping[bytes, bytes] = {}
_PROLOGUE = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
_EPILOGUE = """
import os, select, tty
tty.setcbreak(0, termios.TCSANOW)
left = os.read(0, 100) if select.select([0], [], [], 0.1)[0] else b""
print("left over:", left.hex())
"""


@dataclass(frozen=True)
class Screen:
    """What a program wrote to the terminal, and which input it left unread."""

    code: int
    output: bytes
    left_over: bytes


def on_terminal(
    source: str,
    answers: Mapping[bytes, bytes],
    *,
    environment: Mapping[str, str] | None = None,
    typed: bytes = b"",
    columns: int = 80,
    rows: int = 24,
) -> Screen:
    """Runs Python source on a terminal of its own.

    Args:
        answers: What the terminal sends for what it is asked.
        typed: What somebody has typed before the program asks anything.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    os.write(master, typed)
    dropped = ("NO_COLOR", "TMUX", "COLUMNS", "LINES")
    process = subprocess.Popen(
        [sys.executable, "-c", _PROLOGUE + source + _EPILOGUE],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={k: v for k, v in os.environ.items() if k not in dropped}
        | {"TERM": "xterm-256color"}
        | (environment or {}),
    )
    os.close(slave)
    output, answered, end = b"", 0, time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([master], [], [], 0.1)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            output += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        asked = sorted(  # as a terminal answers: in the order of the questions
            (place, question) for question in answers if (place := output.find(question, answered)) >= 0
        )
        for place, question in asked:
            os.write(master, answers[question])
            answered = place + len(question)
    code = process.wait(timeout=10)
    os.close(master)
    shown, _, left = output.partition(b"left over:")
    return Screen(code, shown, bytes.fromhex(left.strip().decode()) if code == 0 else b"")
