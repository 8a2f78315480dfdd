"""Signals: training finishes its step and saves; everything else stops where it is, with nothing half-written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from attnbooth_cli.errors import StoppedError

_STOPPING = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_at_safe_points(say: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the first signal received, 0 until then; a second signal exits at once."""
    received = 0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received:
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # progress bars hide the cursor
            os._exit(128 + number)
        received = number
        say("finishing this step, then saving; once more stops at once")

    with _handling(note):
        yield lambda: received


class _Signalled(BaseException):
    """Carries a signal out of whatever is running; not an `Exception`, which libraries catch and explain away."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Turns a signal into `StoppedError` wherever the program is; what was written stays.

    Python swallows what is raised inside a finaliser, so the signal is also remembered and raised at the block's end.
    """
    received = 0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number
        raise _Signalled(number)

    try:
        with _handling(stop):
            yield
        if received:
            raise _Signalled(received)
    except _Signalled as signalled:
        raise StoppedError("what was finished is kept", None, signalled.number) from None


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    # What the parent had us ignore stays ignored: SIGHUP under nohup, SIGINT of a script's background jobs.
    wanted = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    former = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)
