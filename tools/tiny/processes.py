"""Jobs on several processes, or in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from typing import TypeVar

Job = TypeVar("Job")


def each_done(work: Callable[[Job], None], jobs: Sequence[Job], processes: int) -> Iterator[int]:
    """Do every job, in no order; yield how many are done after each. With one process nothing is spawned."""
    if processes == 1:
        for count, job in enumerate(jobs, 1):
            work(job)
            yield count
        return
    with get_context("spawn").Pool(processes) as pool:
        for count, _ in enumerate(pool.imap_unordered(work, jobs), 1):
            yield count
