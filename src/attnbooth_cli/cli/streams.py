"""Streams that nobody takes any more: what is said to stderr is lost then, and the work goes on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

BROKEN_PIPE = 141
"""128 + SIGPIPE: whoever read our stdout has gone."""


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Stands in for streams that whoever started us has closed, and lets no failure of stderr end a command.

    A terminal whose window was closed answers with EIO, a log on a full disk with ENOSPC.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    stderr, sys.stderr = sys.stderr, _Lasting(sys.stderr)
    try:
        yield
    finally:
        sys.stderr = stderr


def silence(stream: TextIO) -> None:
    """Sends what is still said to a stream nowhere, also what Python would flush at exit, and fail at."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Lasting:
    """A text stream whose writing does not fail; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
