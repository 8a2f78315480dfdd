"""One writer a project. The operating system's lock (through filelock) dies with its process, so none goes stale."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from attnbooth_cli.errors import LockedError, ResourceError
from attnbooth_cli.project.durable import explained_write

LOCK_NAME = ".lock"
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What network file systems without a lock service answer, see flock(2) and fcntl(2)."""


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds the project's lock; re-entrant within nothing, shared with nobody.

    Raises:
        LockedError: another process holds it; the message says which, where and since when.
        ResourceError: the project cannot be written, or its file system has no locks.
    """
    owner = root / f"{LOCK_NAME}.owner"
    lock = FileLock(root / LOCK_NAME, timeout=0, fallback_to_soft=False)  # a soft lock outlives its process
    with explained_write(root / LOCK_NAME):
        try:
            lock.acquire()
        except Timeout:
            raise LockedError(
                f"{root} is in use by another run{_describe(owner)}", "wait for it to finish, or stop it first"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise ResourceError(
                f"{root} is on a file system that has no locks ({os.strerror(error.errno or 0)})",
                "keep projects on a local disk, or mount that file system with locks (NFS: version 4, or local_lock)",
            ) from None
    try:
        with explained_write(owner):
            details = {
                "pid": os.getpid(),
                "host": platform.node(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            owner.unlink(missing_ok=True)  # a link would be written through
            with owner.open("x", encoding="utf-8") as file:
                json.dump(details, file)
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _describe(owner: Path) -> str:
    try:
        details = json.loads(owner.read_text(encoding="utf-8"))
        return f" (process {details['pid']} on {details['host']}, since {details['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
