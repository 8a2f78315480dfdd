"""Writes that survive the process and the machine dying at any instant.

A file is written beside its place, flushed to disk and renamed over it; a folder likewise. Readers therefore see the
old state or the new one. What is promised rests on POSIX rename and fsync; a network file system that answers fsync
early, or a disk with a lying cache, is out of our hands.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnbooth_cli.errors import ResourceError

TEMPORARY_PREFIX = ".attnbooth-tmp-"
ABANDONED = 3600.0
"""Seconds after which a temporary file nobody has written to is what a dead process left: writing one takes moments."""


@contextlib.contextmanager
def explained_write(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write `path` into a `ResourceError` (exit code 6)."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
            errno.ENAMETOOLONG: "the name is too long",
            errno.ENOENT: "nothing can be made there",
            errno.ENOTDIR: "a file stands where a folder should be",
            errno.EFBIG: "the file would be too large",
        }
        reason = reasons.get(error.errno or 0)
        if reason is None:
            raise
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "look at that place"
        raise ResourceError(
            f"cannot write {path}: {reason}", f"{remedy} or choose another, then run the command again"
        ) from error


def sync_directory(folder: Path) -> None:
    """Makes renames inside `folder` durable. A no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flushes the contents of an already written file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def make_directory(folder: Path) -> None:
    """Makes a folder and those above it where they are missing.

    Raises:
        OSError: as the system says; NotADirectoryError for a file in the way, which mkdir reports as "exists".
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def claim_directory(parent: Path, stem: str, *, always_numbered: bool = False) -> Path:
    """Makes a new folder `stem`, or `stem-2`, `stem-3`, ..., so that nobody else takes it.

    Args:
        always_numbered: Begin with `stem-1`.

    Raises:
        ResourceError: disk full, quota, read-only or permission denied.
    """
    with explained_write(parent):
        make_directory(parent)
        number = 1
        while True:
            folder = parent / (stem if number == 1 and not always_numbered else f"{stem}-{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1


def temporary_beside(place: Path) -> Path:
    """A free name in the same folder, for what will be moved to `place` when it is whole."""
    return place.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}")


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, durably.

    Raises:
        ResourceError: disk full, quota, read-only or permission denied.
    """
    with explained_write(path):
        make_directory(path.parent)
        temporary = temporary_beside(path)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_new_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, durably, unless something is there already.

    Raises:
        FileExistsError: something is; it is left as it was.
        ResourceError: as `write_bytes`.
    """
    with explained_write(path):
        make_directory(path.parent)
        temporary = temporary_beside(path)
        try:
            write_bytes(temporary, data)
            _place_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


def _place_new(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, which a rename would do even where something stands."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.touch(exist_ok=False)
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; half a surrogate pair, which UTF-8 has not, is written as JSON spells it."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, document: Any) -> None:
    """`write_text` of readable, key-order-preserving JSON."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_directory(place: Path) -> Iterator[Path]:
    """Yields an empty folder beside `place` and, when the block ends well, moves it there durably.

    A folder already at `place` is moved aside first and removed afterwards, so a crash leaves at least one of them;
    `recover_directory` puts that one back. When the block raises, nothing remains.

    Raises:
        ResourceError: disk full, quota, read-only or permission denied.
    """
    with explained_write(place):
        make_directory(place.parent)
        temporary = temporary_beside(place)
        try:
            temporary.mkdir()
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    sync_file(Path(folder) / name)
                sync_directory(Path(folder))
            old = aside(place)
            if place.exists():
                if old.exists():
                    shutil.rmtree(old)
                place.rename(old)
            temporary.rename(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            recover_directory(place)
            raise
        sync_directory(place.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def new_numbered_directory(parent: Path, stem: str) -> Iterator[tuple[Path, Path]]:
    """`new_directory` at `stem`, or `stem-2` and so on, whichever is free; nobody else takes that name meanwhile.

    Yields:
        Where to write, and the place it will have.

    Raises:
        ResourceError: disk full, quota, read-only or permission denied.
    """
    place = claim_directory(parent, stem)
    try:
        with new_directory(place) as folder:
            yield folder, place
    except BaseException:
        with contextlib.suppress(OSError):
            place.rmdir()
        raise


def recover_directory(place: Path) -> None:
    """Puts back a folder that `new_directory` had moved aside when the process died."""
    old = aside(place)
    if old.exists() and not place.exists():
        old.rename(place)


def present(place: Path) -> Path:
    """Where a reader finds the folder `new_directory` may be replacing, or may have died replacing, right now."""
    old = aside(place)
    return old if old.is_dir() and not place.exists() else place


def remove_temporaries(folder: Path, older_than: float, *, below: bool = True) -> None:
    """Deletes what interrupted writes left in `folder` and anywhere below it, as far as it can.

    Args:
        below: Also in its folders.
        older_than: Seconds since they were last written to: `ABANDONED`, or 0 for whoever alone may write there.
    """
    for path in list((folder.rglob if below else folder.glob)(f"{TEMPORARY_PREFIX}*")):
        with contextlib.suppress(OSError):  # a read-only place; or another command was quicker
            if older_than and (time.time() - path.stat().st_mtime < older_than or _writer_lives(path)):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _writer_lives(temporary: Path) -> bool:
    """Whether a process here has its writer's number: where a clock has jumped, a young file looks old."""
    import psutil

    number = temporary.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
    return number.isdigit() and int(number) != os.getpid() and psutil.pid_exists(int(number))


def sha256(path: Path) -> str:
    """The file's SHA-256 as lower-case hex.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which might never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuses work that could not be saved.

    Args:
        folder: Any existing folder on the disk in question.
        needed: Bytes.
        purpose: What the bytes are for, as the sentence's object ("two checkpoints of stage unet").

    Raises:
        ResourceError: fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{purpose} need {needed / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free",
            "free some space, or move the project folder to a larger disk",
        )


def aside(place: Path) -> Path:
    """Where `new_directory` keeps the folder it is about to replace."""
    return place.with_name(f".{place.name}.replaced")


def sha256_of_text(text: str) -> str:
    """SHA-256 of UTF-8 text as lower-case hex."""
    return hashlib.sha256(text.encode()).hexdigest()
