"""Exceptions that are not ours, as failures that are."""

from __future__ import annotations

import errno

from attnbooth_cli.errors import BoothError, ResourceError

_ALLOCATION = "can't allocate memory"  # how torch says it on the CPU, as a RuntimeError


def explain(error: Exception) -> BoothError:
    """Any exception as a failure with an exit code: the resource it stands for, or a bug."""
    if isinstance(error, BoothError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _ALLOCATION in str(error):
        return ResourceError(
            "out of memory",
            "compute fewer pictures at once: --set train.micro_batch_size=1 --set train.gradient_checkpointing=true",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return ResourceError(f"cannot write {error.filename or 'a file'}: {error.strerror}", "free some space")
    wrapped = BoothError(
        f"unexpected {type(error).__name__}: {error}", "this is a bug; run again with -v and report what it prints"
    )
    wrapped.__cause__ = error
    return wrapped
