"""Exceptions that are not ours, as failures that are."""

from __future__ import annotations

import errno

from attnbooth_cli.errors import BoothError, InputError, ResourceError, is_out_of_memory


def explain(error: Exception) -> BoothError:
    """Any exception as a failure with an exit code: the resource it stands for, or a bug."""
    if isinstance(error, BoothError):
        return error
    if is_out_of_memory(error):
        return ResourceError(
            "out of memory",
            "make smaller pictures; in training, compute fewer at once: "
            "--set train.micro_batch_size=1 --set train.gradient_checkpointing=true",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return ResourceError(f"cannot write {error.filename or 'the output'}: {error.strerror}", "free some space")
    if isinstance(error, OSError) and error.errno == errno.EIO:  # of a terminal: its window was closed
        return ResourceError(
            f"cannot use {error.filename or 'the output'}: {error.strerror}", "is its device still there?"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return InputError(f"{error.filename or 'a path'} cannot be used: {error.strerror}", "choose another name")
    if isinstance(error, PermissionError):
        return ResourceError(f"{error.filename or 'a file'} may not be read or written", "check its permissions")
    wrapped = BoothError(
        f"unexpected {type(error).__name__}: {error}", "this is a bug; run again with -v and report what it prints"
    )
    wrapped.__cause__ = error
    return wrapped
