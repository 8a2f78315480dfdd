"""This computer: its memory, and where what is known of it is kept. Never imports torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import platformdirs
import psutil

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""


def cache_folder() -> Path:
    """Where things are remembered from one command to the next: `ATTNBOOTH_CACHE`, or the platform's usual place.

    All of it may be deleted.
    """
    named = os.environ.get("ATTNBOOTH_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("attnbooth")


def free_host_memory() -> int:
    """Bytes of memory that can be allocated now."""
    left, available = container_memory(), int(psutil.virtual_memory().available)
    return available if left is None else min(available, left)


def own_memory() -> int:
    """Bytes this process holds."""
    return int(psutil.Process().memory_info().rss)


def container_memory(cgroup: Path = CGROUP) -> int | None:
    """Bytes left below a container's own limit, cached files counted as free; None where there is no limit to read.

    Version 2 and version 1 (Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
    """
    for folder, limit, used in (
        (cgroup, "memory.max", "memory.current"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # the limit "max" is none
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(most - now + int(statistics.get("inactive_file", 0)), 0)
    return None
