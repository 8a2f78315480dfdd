"""SHA-256 of weight files, remembered from one command to the next: hashing a U-Net of 3.5 GB takes seconds.

    <cache folder>/hashes.json      {path: [size, mtime, ctime, inode, SHA-256]}

A hash counts while the file's size, both its times and its inode are what they were, as git's index does it. A file
that was written moments ago is not remembered, for a clock too coarse could hide a second write. What this cannot see
is a disk that changes bytes by itself; deleting `hashes.json` has everything read again. Nothing depends on the file:
it may be missing, damaged or unwritable. Must import neither torch, diffusers nor transformers.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from attnbooth_cli.engine.machine import cache_folder
from attnbooth_cli.errors import ResourceError
from attnbooth_cli.project import durable

LARGE = 64 * 2**20
"""Bytes from which on a hash is remembered; hashing less takes moments."""
SETTLED = 2.0
"""Seconds a file must have been left alone (file systems with the coarsest clock, FAT, count in twos)."""
KEPT = 200
"""Files remembered, the latest ones."""


def file_sha256(path: Path) -> str:
    """The file's SHA-256 as lower-case hex, from memory where it is known.

    Raises:
        OSError: it cannot be read.
    """
    before = _state(path)
    if before[0] < LARGE:
        return durable.sha256(path)
    place, key = _place(), str(path.resolve())
    known = _read(place)
    if known.get(key, [])[:-1] == before:
        return str(known[key][-1])
    found = durable.sha256(path)
    if _state(path) == before and time.time() - max(before[1], before[2]) / 1e9 > SETTLED:
        known.pop(key, None)  # and again as the latest
        latest = dict([*known.items(), (key, [*before, found])][-KEPT:])
        try:
            durable.write_json(place, latest)
        except (OSError, ResourceError):
            return found
    return found


def _place() -> Path:
    return cache_folder() / "hashes.json"


def _state(path: Path) -> list[int]:
    """Size, time of the last change of contents and of anything, and inode."""
    found: os.stat_result = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(place: Path) -> dict[str, list[int | str]]:
    """What is known; nothing where the file is not one of ours."""
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    items = document.items() if isinstance(document, dict) else ()
    return {key: its for key, its in items if isinstance(its, list) and len(its) == 5 and isinstance(its[4], str)}
