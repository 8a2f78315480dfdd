"""Commands as processes of their own that begin warm: forked from a server that has imported everything already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.reliability.warm"])
TIMEOUT = 120.0


def _command(arguments: list[str], said: Path) -> None:
    """What the process does: a command on one thread, its output in a file."""
    import torch

    from attnbooth_cli.cli.app import run
    from tests.conftest import quick

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    with quick():
        code = run(arguments)
    os._exit(code)


@contextlib.contextmanager
def running(said: Path, *arguments: object) -> Iterator[BaseProcess]:
    """A command at work, killed with the block whatever happens.

    Args:
        said: Where its output goes.
    """
    process = CONTEXT.Process(target=_command, args=([str(argument) for argument in arguments], said))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def finished(said: Path, *arguments: object) -> int:
    """Runs a command to its end and gives its exit code."""
    with running(said, *arguments) as process:
        process.join(TIMEOUT)
        assert process.exitcode is not None, said.read_text()
        return process.exitcode


def kills(count: int, draw: random.Random, begin: Callable[[], Path], check: Callable[[Path], None]) -> int:
    """Kills trainings at random moments, going on with each until it comes to its end.

    Args:
        begin: Makes a new project; gives its folder, beside which output may be written.
        check: Raises if a finished project is not as it should be.

    Returns:
        How many trainings it took.
    """
    killed = trainings = 0
    longest = 0.0
    while killed < count:
        root = begin()
        trainings += 1
        said = root.with_suffix(".txt")
        done = False
        while not done:
            started = time.monotonic()
            with running(said, "train", root, "-q") as process:
                # The first goes through, and says how long one takes.
                process.join(draw.uniform(0, longest) if longest and killed < count else TIMEOUT)
                if process.exitcode is None:
                    process.kill()
                    process.join()
                    killed += process.exitcode == -signal.SIGKILL
            if process.exitcode != -signal.SIGKILL:
                assert process.exitcode == 0, said.read_text()
                longest = longest or time.monotonic() - started
                done = True
        check(root)
    return trainings
