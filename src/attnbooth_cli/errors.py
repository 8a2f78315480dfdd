"""Every failure a user can meet, each with the exit code the command line promises for it.

The engine and the project room raise these; only the command line turns them into text and an exit code. Standard
library only: the module is imported before anything heavy.
"""


class BoothError(Exception):
    """A failure that is explained to the user instead of shown as a traceback.

    Args:
        message: One sentence that says what is wrong and where.
        hint: What to do about it, usually a command to run.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(BoothError):
    """Wrong usage, manifest, pictures or prompt; an unsupported model; a missing extra."""

    exit_code = 2


class GateError(BoothError):
    """A `--min-*` gate of `eval` was not met."""

    exit_code = 3


class LockedError(BoothError):
    """Another run holds the project's lock."""

    exit_code = 4


class DamagedError(BoothError):
    """A file of the project is missing or does not match its recorded hash."""

    exit_code = 5


class ResourceError(BoothError):
    """Out of disk, memory or device, or a place that cannot be written."""

    exit_code = 6


class BaseModelError(BoothError):
    """The base model (or a judge) cannot be obtained."""

    exit_code = 7


class DivergedError(BoothError):
    """A loss or a weight is no longer finite."""

    exit_code = 8


class StoppedError(BoothError):
    """A signal stopped the run after its state was saved.

    Args:
        message: What was saved.
        hint: The command that continues.
        signal_number: The POSIX signal; the exit code is 128 plus this number, as shells report it.
    """

    def __init__(self, message: str, hint: str | None, signal_number: int) -> None:
        super().__init__(message, hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


_MEMORY = ("can't allocate memory", "out of memory", "cublas_status_alloc_failed")
"""How torch and its back ends say it in errors of no particular type, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, torch's or Python's, says that memory did not suffice."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error).lower() for words in _MEMORY)
