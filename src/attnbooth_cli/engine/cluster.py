"""Many concepts over a Ray cluster: one at a time in each worker process, which loads the base model once (our design).

The process that asked (the head) sends projects out and hears of every event. Workers write into the projects
themselves, so these and a local base model must be at the same place on every node; a worker that does not see a
project refuses it. Where a worker dies, another goes on from the project's last checkpoint. Imports torch in workers
only; Ray is an extra.

Ray's own documentation is the source of what is assumed of it: actors (ray.io, "Actors"), their resources, threads
(`max_concurrency`) and failures (`RayActorError`).
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import secrets
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnbooth_cli.errors import BoothError, InputError, LockedError, ResourceError, StoppedError
from attnbooth_cli.events import Event, Started, Warned
from attnbooth_cli.project.durable import explained_write, temporary_beside
from attnbooth_cli.project.shell import command

if TYPE_CHECKING:
    from attnbooth_cli.engine.methods import StageName
    from attnbooth_cli.engine.preparation import TrainOptions

ShouldStop = Callable[[], int]
"""Returns the number of the signal that asked to stop, 0 for none."""

RETRIES = 2
"""How often a concept whose worker died is resumed (our choice)."""
INHERITED = ("ATTNBOOTH_", "HF_", "HUGGING")
"""Beginnings of the environment variables that workers take over from the head, on whatever node they are."""
HEARTBEAT = 0.5
"""Seconds after which the head looks whether it is to stop, and a worker with nothing to tell answers."""
GATHERING = 0.1
"""Seconds in which a worker gathers events before it sends them, since each message costs about as much as many."""
CENSUS = 5.0
"""Seconds between looks at what the cluster has."""
LOCAL: dict[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 100_000_000,  # bytes, for a few events; Ray wants at least 75 MiB
}
"""Of a cluster of our own."""
LOCK_PATIENCE = 120.0
"""Seconds to wait for a dead worker's lock: the kernel frees it at once, a file server after its clients' lease, 90 s
by default for NFS 4 (Linux, nfsd)."""


@dataclass(frozen=True)
class Work:
    """What to do with every project: the arguments of `training.train` or `training.resume`."""

    call: Literal["train", "resume"]
    options: TrainOptions | None = None
    until: StageName | None = None
    restart: bool = False
    report: bool = True


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


def require_ray() -> None:
    """Checks that Ray is there, and that nobody else divides the work.

    Raises:
        InputError: it is not installed, or a launcher has started several processes.
    """
    if find_spec("ray") is None:
        raise InputError("--executor ray needs the library ray", "pip install 'attnbooth[ray]'")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--executor ray starts its own processes", "run it without accelerate launch or torchrun")


def parse_resources(text: str) -> Resources:
    """`cpu=2,gpu=0.5,memory=16` (memory in GB, any other name as the cluster's nodes have it) as resources.

    Raises:
        InputError: it cannot be read, or asks for what no concept can use.
    """
    form = "for example --resources cpu=2,gpu=0.5,memory=16 (memory in GB)"
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, amount = (word.strip() for word in part.partition("="))
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not name or not 0 <= number < math.inf:
            raise InputError(f"--resources: {part!r} is no amount of anything", form)
        if name in found:
            raise InputError(f"--resources names {name} twice", form)
        if name != "memory" and number > 1 and number != int(number):
            raise InputError(f"--resources: {part} is neither part of one nor a whole number", form)
        found[name] = number
    if found.get("gpu", 0) > 1:
        raise InputError(
            "one concept uses one GPU or a part of it", "several GPUs for one concept: accelerate launch (README)"
        )
    return Resources(
        cpu=found.pop("cpu", 1.0),
        gpu=found.pop("gpu", None),
        memory=int(found.pop("memory", 0) * 1e9),
        others=tuple(found.items()),
    )


def train_many(
    projects: Sequence[Path],
    work: Work,
    crew: Crew,
    *,
    emit: Callable[[Path, Event], None],
    ended: Callable[[Path, BoothError | None, float], None],
    should_stop: ShouldStop = lambda: 0,
    explain: Callable[[Exception], BoothError],
) -> int:
    """Does `work` with every project, on as many workers as the cluster has room for.

    The cluster is the one this process is connected to already, else that of `RAY_ADDRESS`, else one of this machine's
    cores and GPUs, which ends with the call.

    Args:
        emit: Told of every event, with its project.
        ended: Told once of every project that was begun: the failure or None, and the seconds of all attempts.
        should_stop: Asked about twice a second; on a signal no more is begun, and every run saves its state and stops.
        explain: Any exception as a failure; a module's function, since workers call it.

    Returns:
        The signal that stopped it, 0 for none. Projects that were not begun by then are not reported.

    Raises:
        InputError: Ray is not installed.
        ResourceError: the cluster cannot be reached or started, or none of its nodes has what one concept needs.
    """
    require_ray()
    with _connected() as ray, _quiet():
        head = _Head(ray, work, crew, emit, ended, explain, deque(_Task(root) for root in projects))
        try:
            return head.run(should_stop)
        finally:
            for seat in head.seats:
                head.dismiss(seat)


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if address == "local" and not connected and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens to the whole network, and would do what anybody there asks (ray.io, "Token authentication").
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    if connected:
        yield ray
        return
    import logging

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    local = LOCAL if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **local)
    except Exception as error:
        where = "cannot be started here" if address == "local" else f"at {address} cannot be reached"
        raise ResourceError(
            f"the Ray cluster {where}: {_first_line(error)}",
            "see what `ray status` says; RAY_ADDRESS names the cluster, without it one is started on this machine",
        ) from error
    with contextlib.suppress(ValueError):  # outside the main thread neither Ray nor we can
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray from printing what it hears from its nodes, such as a worker's death, among results on stdout.

    There is no public switch for it (2.60: `listen_error_messages` in ray/_private/worker.py); where that has changed,
    nothing is done, and the tests say so.
    """
    from ray._private import worker

    former = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = former


@dataclass
class _Task:
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
class _Seat:
    """A worker, or room for one that the cluster has not given yet.

    Attributes:
        hello: Pending until the worker is there; gives its node's name.
        run, news: The work under way, and the next events of it.
    """

    actor: Any
    hello: Any
    node: str = ""
    task: _Task | None = None
    run: Any = None
    news: Any = None

    @property
    def idle(self) -> bool:
        return bool(self.node) and self.task is None


@dataclass(frozen=True)
class _Report:
    """How an attempt ended: with the last events, and what of a failure can cross between processes."""

    events: list[Event]
    failure: tuple[str, str | None, int] | None = None
    trace: str = ""


@dataclass
class _Head:
    """The process that sends work out."""

    ray: Any
    work: Work
    crew: Crew
    emit: Callable[[Path, Event], None]
    ended: Callable[[Path, BoothError | None, float], None]
    explain: Callable[[Exception], BoothError]
    waiting: deque[_Task]
    seats: list[_Seat] = field(default_factory=list)
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
        room = sum(_fits(node, needs) for node in nodes)
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

    def seat(self) -> _Seat:
        environment = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
        config = _user_config()
        if config:
            environment["ATTNBOOTH_CONFIG"] = config
        others = {name: amount for name, amount in self.needs.items() if name not in ("CPU", "GPU", "memory")}
        actor = (
            self.ray.remote(_Worker)
            .options(
                num_cpus=self.needs.get("CPU", 0),
                num_gpus=self.needs.get("GPU", 0),
                memory=int(self.needs["memory"]) if "memory" in self.needs else None,
                resources=others or None,
                max_concurrency=3,  # `run`, and beside it `news` and `stop`
            )
            .remote(str(Path.cwd()), environment, bool(self.needs.get("GPU")), len(self.waiting) > 1)
        )
        return _Seat(actor, actor.hello.remote())

    def send(self, seat: _Seat, task: _Task) -> None:
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

    def answer(self, seat: _Seat, reference: Any) -> None:
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

    def tell(self, seat: _Seat, events: list[Event]) -> None:
        if seat.task is None:
            return
        for event in events:
            seat.task.begun = seat.task.begun or isinstance(event, Started)
            self.emit(seat.task.root, event)

    def over(self, seat: _Seat, failure: BoothError | None) -> None:
        task = _taken(seat)
        self.ended(task.root, failure, task.seconds)

    def lost(self, seat: _Seat, error: Exception) -> None:
        """A worker died, with what it was at."""
        self.dismiss(seat)
        if seat.task is None:
            self.unborn += 1
            if self.unborn > self.crew.retries + self.room:
                self.give_up(f"no worker of the Ray cluster can be started: {_first_line(error)}")
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
            self.ended(task.root, ResourceError(f"{on}, {again} by now ({_first_line(error)})", go_on), task.seconds)
        else:
            self.emit(task.root, Warned(f"{on} ({_first_line(error)}); another goes on from the last checkpoint"))
            self.waiting.appendleft(task)

    def give_up(self, why: str) -> None:
        while self.waiting:
            task = self.waiting.popleft()
            self.ended(task.root, ResourceError(why, "see Ray's logs; is attnbooth installed there?"), task.seconds)

    def dismiss(self, seat: _Seat) -> None:
        if seat in self.seats:
            self.seats = [other for other in self.seats if other is not seat]
            with contextlib.suppress(Exception):  # it may be gone already
                self.ray.kill(seat.actor)


class _Worker:
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
    ) -> _Report:
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
        return _Report(events, failure, trace)

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
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
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


def _fits(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
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


def _taken(seat: _Seat) -> _Task:
    """Takes what a worker was at from it."""
    task = seat.task
    assert task is not None
    seat.task = seat.run = seat.news = None
    task.seconds += time.monotonic() - task.started
    if task.marker:
        with contextlib.suppress(OSError):
            task.marker.unlink(missing_ok=True)
    return task


def _failure(report: _Report) -> BoothError | None:
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


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
