"""The process that asked for many concepts: sends them to the cluster's workers, hears of them, and makes good losses.

It keeps as many workers as there is work and room for, one concept in each. Where one dies, another goes on from the
project's last checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbooth_cli.engine.cluster_worker import HEARTBEAT, Report, Work, Worker
from attnbooth_cli.errors import BoothError, ResourceError, StoppedError
from attnbooth_cli.events import Event, Started, Warned
from attnbooth_cli.project.durable import explained_write, temporary_beside
from attnbooth_cli.project.shell import command

ShouldStop = Callable[[], int]
"""Returns the number of the signal that asked to stop, 0 for none."""

RETRIES = 2
"""How often a concept whose worker died is resumed (our choice)."""
INHERITED = ("ATTNBOOTH_", "HF_", "HUGGING")
"""Beginnings of the environment variables that workers take over from the head, on whatever node they are."""
CENSUS = 5.0
"""Seconds between looks at what the cluster has."""
LOCK_PATIENCE = 120.0
"""Seconds to wait for a dead worker's lock: the kernel frees it at once, a file server after its clients' lease, 90 s
by default for NFS 4 (Linux, nfsd)."""


@dataclass(frozen=True)
class Resources:
    """Of one concept, in Ray's units.

    Attributes:
        cpu: Cores.
        gpu: GPUs, or a part of one; None for one where the cluster has any.
        memory: Bytes of main memory, 0 for any.
        others: What else the cluster's nodes name.
    """

    cpu: float = 1.0
    gpu: float | None = None
    memory: int = 0
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Attributes:
        retries: How often a concept is resumed whose worker died.
    """

    resources: Resources = Resources()
    retries: int = RETRIES


@dataclass
class Task:
    """A project on its way.

    Attributes:
        attempts: How often it was sent out.
        begun: Whether an attempt came as far as a run that can be resumed.
        seconds: Of the attempts that are over.
        marker: A file in the project by which a worker knows it again.
    """

    root: Path
    attempts: int = 0
    begun: bool = False
    seconds: float = 0.0
    started: float = 0.0
    marker: Path | None = None


@dataclass
class Seat:
    """A worker, or room for one that the cluster has not given yet.

    Attributes:
        hello: Pending until the worker is there; gives its node's name.
        run, news: The work under way, and the next events of it.
    """

    actor: Any
    hello: Any
    node: str = ""
    task: Task | None = None
    run: Any = None
    news: Any = None

    @property
    def idle(self) -> bool:
        return bool(self.node) and self.task is None


@dataclass
class Head:
    """The process that sends work out."""

    ray: Any
    work: Work
    crew: Crew
    emit: Callable[[Path, Event], None]
    ended: Callable[[Path, BoothError | None, float], None]
    explain: Callable[[Exception], BoothError]
    waiting: deque[Task]
    seats: list[Seat] = field(default_factory=list)
    needs: dict[str, float] = field(default_factory=dict)
    unborn: int = 0
    room: int = 0
    counted: float = -math.inf
    stopping: int = 0

    def run(self, should_stop: ShouldStop) -> int:
        """Until everything is done or stopped."""
        while self.waiting or any(seat.task for seat in self.seats):
            if not self.stopping and (number := should_stop()):
                self.stop(number)
            if not self.stopping:
                self.hire()
            references = {}
            for seat in self.seats:
                for reference in (seat.run, seat.news) if seat.task else () if seat.node else (seat.hello,):
                    if reference is not None:
                        references[reference] = seat
            if not references:
                continue
            ready, _ = self.ray.wait(list(references), num_returns=1, timeout=HEARTBEAT)
            if ready:  # whatever else there is by now
                ready, _ = self.ray.wait(list(references), num_returns=len(references), timeout=0)
            for reference in ready:
                self.answer(references[reference], reference)
        return self.stopping

    def stop(self, number: int) -> None:
        """Begins nothing more, and lets what is under way save its state."""
        self.stopping = number
        self.waiting.clear()
        for seat in list(self.seats):
            if seat.task:
                seat.actor.stop.remote(number)
            else:
                self.dismiss(seat)

    def hire(self) -> None:
        """Asks for as many workers as there is both work and room for."""
        if time.monotonic() - self.counted > CENSUS:
            self.needs, self.room = self.census()
            self.counted = time.monotonic()
        free = sum(seat.task is None for seat in self.seats)
        while len(self.waiting) > free and len(self.seats) < self.room:
            self.seats.append(self.seat())
            free += 1
        for seat in list(self.seats):
            if seat.idle and self.waiting:
                self.send(seat, self.waiting.popleft())
            elif seat.idle:
                self.dismiss(seat)  # others may want what it holds

    def census(self) -> tuple[dict[str, float], int]:
        """What one concept needs, under Ray's names, and how many at once the cluster has room for.

        Raises:
            ResourceError: for none.
        """
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        wanted = self.crew.resources
        gpu = wanted.gpu if wanted.gpu is not None else float(any(node.get("GPU", 0) >= 1 for node in nodes))
        needs = {"CPU": wanted.cpu, "GPU": gpu, "memory": float(wanted.memory), **dict(wanted.others)}
        needs = {name: amount for name, amount in needs.items() if amount}
        room = sum(fits(node, needs) for node in nodes)
        if not room and not any(seat.task for seat in self.seats):
            asked = ", ".join(f"{name} {amount:g}" for name, amount in needs.items())
            there = "; ".join(
                ", ".join(f"{name} {node.get(name, 0):g}" for name in needs) for node in nodes[:8]
            )  # fmt: skip
            raise ResourceError(
                f"no node of the Ray cluster has what one concept is to have ({asked}; there is {there or 'none'})",
                "ask for less with --resources",
            )
        return needs, room

    def seat(self) -> Seat:
        environment = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
        config = _user_config()
        if config:
            environment["ATTNBOOTH_CONFIG"] = config
        others = {name: amount for name, amount in self.needs.items() if name not in ("CPU", "GPU", "memory")}
        actor = (
            self.ray.remote(Worker)
            .options(
                num_cpus=self.needs.get("CPU", 0),
                num_gpus=self.needs.get("GPU", 0),
                memory=int(self.needs["memory"]) if "memory" in self.needs else None,
                resources=others or None,
                max_concurrency=3,  # `run`, and beside it `news` and `stop`
            )
            .remote(str(Path.cwd()), environment, bool(self.needs.get("GPU")), len(self.waiting) > 1)
        )
        return Seat(actor, actor.hello.remote())

    def send(self, seat: Seat, task: Task) -> None:
        task.attempts += 1
        task.started = time.monotonic()
        try:
            task.marker = _mark(task.root)
        except BoothError as error:
            self.ended(task.root, error, 0.0)
            return
        work = Work("resume", report=self.work.report) if task.begun else self.work
        patience = LOCK_PATIENCE if task.attempts > 1 else 0.0
        seat.task = task
        seat.run = seat.actor.run.remote(str(task.root), work, task.marker.name, patience, self.explain)
        seat.news = seat.actor.news.remote()

    def answer(self, seat: Seat, reference: Any) -> None:
        """Takes what a worker has to say, or notes that it cannot say anything any more."""
        from ray.exceptions import RayError, RayTaskError

        try:
            if seat not in self.seats or reference not in (seat.hello, seat.run, seat.news):
                return  # overtaken by another answer of the same round
            said = self.ray.get(reference)
            if reference == seat.hello:
                seat.node, self.unborn = said, 0
            elif reference == seat.news:
                self.tell(seat, said)
                seat.news = seat.actor.news.remote()
            else:
                with contextlib.suppress(RayError):  # it died after all was done
                    self.tell(seat, self.ray.get(seat.news) if seat.news is not None else [])
                self.tell(seat, said.events)
                self.over(seat, _failure(said))
        except RayError as error:
            if reference == seat.news:  # then `run` says so too
                seat.news = None
            elif reference == seat.run and isinstance(error, RayTaskError):  # it lives, and what it did was wrong
                self.over(seat, self.explain(_cause(error)))
            else:
                self.lost(seat, _cause(error))

    def tell(self, seat: Seat, events: list[Event]) -> None:
        if seat.task is None:
            return
        for event in events:
            seat.task.begun = seat.task.begun or isinstance(event, Started)
            self.emit(seat.task.root, event)

    def over(self, seat: Seat, failure: BoothError | None) -> None:
        task = _taken(seat)
        self.ended(task.root, failure, task.seconds)

    def lost(self, seat: Seat, error: Exception) -> None:
        """A worker died, with what it was at."""
        self.dismiss(seat)
        if seat.task is None:
            self.unborn += 1
            if self.unborn > self.crew.retries + self.room:
                self.give_up(f"no worker of the Ray cluster can be started: {first_line(error)}")
            return
        task = _taken(seat)
        on = f"the worker on {seat.node} died"
        go_on = command("resume", task.root)
        if self.stopping:
            self.ended(
                task.root,
                StoppedError(f"{on}; what its last checkpoint has is kept", go_on, self.stopping),
                task.seconds,
            )
        elif task.attempts > self.crew.retries:
            again = f"{task.attempts} times" if task.attempts > 1 else "once"
            self.ended(task.root, ResourceError(f"{on}, {again} by now ({first_line(error)})", go_on), task.seconds)
        else:
            self.emit(task.root, Warned(f"{on} ({first_line(error)}); another goes on from the last checkpoint"))
            self.waiting.appendleft(task)

    def give_up(self, why: str) -> None:
        while self.waiting:
            task = self.waiting.popleft()
            self.ended(task.root, ResourceError(why, "see Ray's logs; is attnbooth installed there?"), task.seconds)

    def dismiss(self, seat: Seat) -> None:
        if seat in self.seats:
            self.seats = [other for other in self.seats if other is not seat]
            with contextlib.suppress(Exception):  # it may be gone already
                self.ray.kill(seat.actor)


def fits(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many concepts a node has room for."""
    if not needs:
        return max(1, int(node.get("CPU", 1)))
    return int(min(node.get(name, 0.0) / amount + 1e-9 for name, amount in needs.items()))


def _user_config() -> str | None:
    """The head's configuration file, which then must be there for the workers too."""
    from attnbooth_cli.engine.preparation import user_config_path

    path = user_config_path(os.environ)
    return str(path.resolve()) if path.is_file() else None


def _mark(root: Path) -> Path:
    """A new file in a project, which commands take for a leftover and clear away."""
    marker = temporary_beside(root / "marker")
    with explained_write(marker):
        marker.touch()
    return marker


def _taken(seat: Seat) -> Task:
    """Takes what a worker was at from it."""
    task = seat.task
    assert task is not None
    seat.task = seat.run = seat.news = None
    task.seconds += time.monotonic() - task.started
    if task.marker:
        with contextlib.suppress(OSError):
            task.marker.unlink(missing_ok=True)
    return task


def _failure(report: Report) -> BoothError | None:
    if report.failure is None:
        return None
    message, hint, code = report.failure
    failure = BoothError(message, hint)
    failure.exit_code = code
    failure.add_note(report.trace)
    return failure


def _cause(error: Exception) -> Exception:
    """What went wrong in a worker, without what Ray wraps it in."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
