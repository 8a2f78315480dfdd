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
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnbooth_cli.engine.cluster_head import Crew, Head, Resources, ShouldStop, Task, first_line
from attnbooth_cli.engine.cluster_worker import Work
from attnbooth_cli.errors import BoothError, InputError, ResourceError
from attnbooth_cli.events import Event

LOCAL: dict[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 100_000_000,  # bytes, for a few events; Ray wants at least 75 MiB
}
"""Of a cluster of our own."""


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
        head = Head(ray, work, crew, emit, ended, explain, deque(Task(root) for root in projects))
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
            f"the Ray cluster {where}: {first_line(error)}",
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
