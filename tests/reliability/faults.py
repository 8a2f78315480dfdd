"""Dies, or fails, at the k-th file-system call below a folder.

Python reports what it asks of the file system as audit events (PEP 578); what it does not report (fsync, and what
safetensors does in Rust) is wrapped. A death is final: whatever the program still tries, cleaning up included, fails
too, as it would not run at all in a process that is gone.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch

Kind = Literal["dies", "is full"]
EVENTS = frozenset(
    {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.listdir", "os.scandir", "os.truncate"}
)
WRITING = frozenset({"os.rename", "os.mkdir", "os.link", "os.truncate", "fsync", "save_file"})


class Died(BaseException):
    """The process is gone."""


@dataclass
class Faults:
    """Counts calls below `root`, and lets one of them go wrong.

    Attributes:
        at: The number of that call, from 1; 0 for none.
        kind: "dies": it and all after it raise `Died`. "is full": it alone fails with ENOSPC, if it is one that writes.
        calls: What was called, in order.
    """

    root: Path
    at: int
    kind: Kind
    calls: list[str] = field(default_factory=list)
    gone: bool = False

    def called(self, event: str, path: object, writes: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(str(self.root)):
            return
        if self.gone:
            raise Died
        if self.kind == "is full" and not writes:
            return
        self.calls.append(f"{event} {Path(os.fsdecode(path)).name}")
        if len(self.calls) == self.at:
            if self.kind == "dies":
                self.gone = True
                raise Died
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))


_ACTIVE: list[Faults] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _ACTIVE and event in EVENTS:
        writes = event in WRITING or (event == "open" and _opens_for_writing(arguments))
        _ACTIVE[0].called(event, _place(event, arguments), writes)


def _place(event: str, arguments: tuple[Any, ...]) -> object:
    """The path, whole also where it is given from an open folder on, as `shutil.rmtree` does."""
    path, folder = arguments[0], arguments[-1]
    if event in ("os.remove", "os.rmdir") and isinstance(folder, int) and folder >= 0:
        return Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(path)
    return path


def _opens_for_writing(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


sys.addaudithook(_hook)  # cannot be taken away again; without an active `Faults` it does nothing


@contextlib.contextmanager
def faults(root: Path, at: int = 0, kind: Kind = "dies") -> Iterator[Faults]:
    """Lets the `at`-th call below `root` go wrong during the block; a death ends the block."""
    active = Faults(root, at, kind)
    fsync, save_file = os.fsync, safetensors.torch.save_file

    def counted_fsync(descriptor: int) -> None:
        active.called("fsync", Path(f"/proc/self/fd/{descriptor}").readlink(), True)
        fsync(descriptor)

    def counted_save_file(tensors: Any, path: Any, *arguments: Any, **options: Any) -> None:
        active.called("save_file", path, True)
        save_file(tensors, path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counted_fsync)
        patch.setattr("attnbooth_cli.engine.weights.save_file", counted_save_file)
        _ACTIVE.append(active)
        try:
            yield active
        except Died as death:
            death.__traceback__ = None
        finally:
            _ACTIVE.remove(active)
    gc.collect()  # closes what the dead process had open, its lock above all


def spread(total: int, count: int, turn: int) -> list[int]:
    """`count` numbers from 1 to `total`, evenly spread, others at every `turn`."""
    step = total / count
    return sorted({1 + int(k * step + turn % max(int(step), 1)) % total for k in range(count)})
