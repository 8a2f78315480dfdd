"""One writer a project. The operating system's lock (through filelock) dies with its process, so none goes stale."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from attnbooth_cli.errors import LockedError
from attnbooth_cli.project.durable import explained_write

LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds the project's lock; re-entrant within nothing, shared with nobody.

    Raises:
        LockedError: another process holds it; the message says which, where and since when.
        ResourceError: the project cannot be written.
    """
    owner = root / f"{LOCK_NAME}.owner"
    lock = FileLock(root / LOCK_NAME, timeout=0)
    with explained_write(root / LOCK_NAME):
        try:
            lock.acquire()
        except Timeout:
            raise LockedError(
                f"{root} is in use by another run{_describe(owner)}", "wait for it to finish, or stop it first"
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
