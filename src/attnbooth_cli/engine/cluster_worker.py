"""A process that trains one concept after another on a cluster's node; it loads the base model once.

Imports torch when it is there, not when this module is imported: the process that sends work out does without.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnbooth_cli.errors import BoothError, LockedError, ResourceError
from attnbooth_cli.events import Event

if TYPE_CHECKING:
    from attnbooth_cli.engine.methods import StageName
    from attnbooth_cli.engine.preparation import TrainOptions

HEARTBEAT = 0.5
"""Seconds after which the head looks whether it is to stop, and a worker with nothing to tell answers."""
GATHERING = 0.1
"""Seconds in which a worker gathers events before it sends them, since each message costs about as much as many."""


@dataclass(frozen=True)
class Work:
    """What to do with every project: the arguments of `training.train` or `training.resume`."""

    call: Literal["train", "resume"]
    options: TrainOptions | None = None
    until: StageName | None = None
    restart: bool = False
    report: bool = True


@dataclass(frozen=True)
class Report:
    """How an attempt ended: with the last events, and what of a failure can cross between processes."""

    events: list[Event]
    failure: tuple[str, str | None, int] | None = None
    trace: str = ""


class Worker:
    """A process that trains one concept after another, on a cluster's node. Its methods run in threads of their own."""

    def __init__(self, folder: str, environment: Mapping[str, str], gpu: bool, keep: bool) -> None:
        os.environ.update(environment)
        if not gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides those that were not asked for, but not in all versions
        self.folder, self.keep = folder, keep
        self.pool: Any = None
        self.signal = 0
        self.untold: list[Event] = []
        self.busy = False
        self.changed = threading.Condition()

    def hello(self) -> str:
        """The node's name, once everything is imported."""
        from attnbooth_cli.engine import training
        from attnbooth_cli.engine.families import ComponentPool

        assert training
        self.pool = ComponentPool(keep=self.keep)
        return platform.node() or "a node without a name"

    def stop(self, number: int) -> None:
        """Lets the run under way save and stop."""
        self.signal = number

    def news(self) -> list[Event]:
        """Events nobody was told yet; waits for some."""
        with self.changed:
            self.changed.wait_for(lambda: self.untold or not self.busy, timeout=HEARTBEAT)
        time.sleep(GATHERING)
        with self.changed:
            taken, self.untold = self.untold, []
        return taken

    def run(
        self, root: str, work: Work, marker: str, patience: float, explain: Callable[[Exception], BoothError]
    ) -> Report:
        """One attempt at one project."""
        self.busy = True
        failure, trace = None, ""
        deadline = time.monotonic() + patience
        try:
            self._require_same_disk(Path(root), marker)
            while True:
                try:
                    self._do(root, work)
                    break
                except LockedError:
                    if time.monotonic() > deadline or self.signal:
                        raise
                    time.sleep(HEARTBEAT)
        except Exception as error:
            explained = explain(error)
            failure = (explained.message, explained.hint, explained.exit_code)
            trace = "".join(traceback.format_exception(error))
        with self.changed:
            self.busy, events, self.untold = False, self.untold, []
            self.changed.notify()
        return Report(events, failure, trace)

    def _do(self, root: str, work: Work) -> None:
        from attnbooth_cli.engine import training

        emit, should_stop = self._emit, lambda: self.signal
        if work.call == "resume":
            training.resume(root, emit=emit, should_stop=should_stop, pool=self.pool, report=work.report)
        else:
            training.train(
                root,
                options=work.options,
                until=work.until,
                restart=work.restart,
                emit=emit,
                should_stop=should_stop,
                pool=self.pool,
                report=work.report,
            )

    def _require_same_disk(self, root: Path, marker: str) -> None:
        """Checks that this node sees the project the head sees, and not nothing or a folder of its own.

        Raises:
            ResourceError: it does not.
        """
        with contextlib.suppress(OSError):  # needed for a relative path only
            os.chdir(self.folder)
        with contextlib.suppress(OSError):
            if (root / marker).exists():
                return
        raise ResourceError(
            f"the node {platform.node()} does not see the project {root}",
            "keep projects on a disk that all nodes of the cluster have at the same place",
        )

    def _emit(self, event: Event) -> None:
        with self.changed:
            self.untold.append(event)
            self.changed.notify()
