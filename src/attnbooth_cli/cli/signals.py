"""Signals: training finishes its step and saves; everything else stops where it is, with nothing half-written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from attnbooth_cli.errors import StoppedError

_STOPPING = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
_NOTICES = [number for name in ("SIGUSR1",) if (number := getattr(signal, name, None))]
"""What schedulers send ahead of the end (Slurm: --signal=USR1@120); training alone takes it."""
STOP_FILE = "ATTNBOOTH_STOP_FILE"
"""Names a file; when it exists, training stops as after SIGTERM."""

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_at_safe_points(say: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the first signal received, 0 until then; a second signal exits at once.

    A file that `STOP_FILE` names counts as SIGTERM once it exists.
    """
    received = 0
    file = os.environ.get(STOP_FILE)

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received:
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # progress bars hide the cursor
            sys.stderr.write("stopped at once; the last saved state is whole\n")
            os._exit(128 + number)
        received = number
        say("stopping after this step, and saving; once more stops at once")

    def asked() -> int:
        nonlocal received
        if not received and file and os.path.exists(file):  # noqa: PTH110 - asked after every step
            received = signal.SIGTERM
            say(f"stopping after this step, and saving: there is a file {file} ({STOP_FILE}), which is yours to remove")
        return received

    with _handling(note, _NOTICES):
        yield asked


class _Signalled(BaseException):
    """Carries a signal out of whatever is running; not an `Exception`, which libraries catch and explain away."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stop_at_once(again: str | None = None, kept: str = "what was finished is kept") -> Iterator[None]:
    """Turns a signal into `StoppedError` wherever the program is; what was written stays.

    Args:
        again: How to go on.
        kept: What is left.

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
        raise StoppedError(kept, again, signalled.number) from None


@contextmanager
def _handling(handler: Handler, further: Sequence[int] = ()) -> Iterator[None]:
    # What the parent had us ignore stays ignored: SIGHUP under nohup, SIGINT of a script's background jobs.
    wanted = [number for number in (*_STOPPING, *further) if signal.getsignal(number) != signal.SIG_IGN]
    former = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)
