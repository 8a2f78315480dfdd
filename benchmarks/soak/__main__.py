"""The long form of the tests of reliability: python -m benchmarks.soak STEP

faults   every file-system call of init, train, resume, generate and eval in turn, died at and failed at
kills    trainings killed at random moments (--count, --seed)
crowd    many trainings of as many projects at once (--count), --alive at a time, on one cache
(each prints what it tried, and ends with 1 at the first thing that is lost or comes out otherwise)
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import example_project, weights
from tests.reliability.faults import Kind
from tests.reliability.processes import TIMEOUT, finished, kills, running
from tests.reliability.scenarios import SCENARIOS, declared_two_steps, in_process, try_all

KINDS: tuple[Kind, ...] = ("dies", "is full")
FOLDER = Path("build/soak")
"""What `faults` has done already, so that it goes on there."""


def faults(folder: Path, names: list[str], kinds: Sequence[Kind], word: str, once: bool) -> str:
    """Every call of the named commands that has `word` in it, or the first of its like, in each of these ways."""
    tried = 0
    with in_process(folder) as trials:
        for kind in kinds:
            for name in names:
                record = folder / f"{name}-{kind.replace(' ', '-')}.txt"
                tried += try_all(trials[name], kind, record, say, word, once=once)
    return f"{tried} calls{f' of {word}' if word else ''} of {', '.join(names)} went wrong"


def kill(folder: Path, count: int, seed: int) -> str:
    """Trainings killed without notice."""
    project, expected = _whole(folder)
    number = iter(range(10**9))

    def begin() -> Path:
        return Path(shutil.copytree(project, folder / f"p{next(number)}"))

    def check(root: Path) -> None:
        if weights(root) != expected:
            raise AssertionError(f"{root} came out otherwise")
        say(f"{root.name} is as it should be")
        shutil.rmtree(root)

    trainings = kills(count, random.Random(seed), begin, check)
    return f"{count} kills (seed {seed}) in {trainings} trainings"


def crowd(folder: Path, count: int, alive: int) -> str:
    """Trainings of as many projects, in one cache of the base model's hashes."""
    project, expected = _whole(folder)
    roots = [Path(shutil.copytree(project, folder / f"p{number}")) for number in range(count)]
    for first in range(0, count, alive):
        batch = roots[first : first + alive]
        contexts = [running(root.with_suffix(".txt"), "train", root, "-q") for root in batch]
        processes = [context.__enter__() for context in contexts]
        for root, context, process in zip(batch, contexts, processes, strict=True):
            process.join(TIMEOUT * alive)
            if process.exitcode or weights(root) != expected:
                raise AssertionError(f"{root}: {process.exitcode}, {root.with_suffix('.txt').read_text()}")
            context.__exit__(None, None, None)
        say(f"{first + len(batch)} of {count} are as they should be")
    return f"{count} trainings, {alive} at a time"


def _whole(folder: Path) -> tuple[Path, dict[str, bytes]]:
    project = example_project(folder / "untrained")
    declared_two_steps(project)
    whole = Path(shutil.copytree(project, folder / "whole"))
    if finished(folder / "whole.txt", "train", whole, "-q"):
        raise AssertionError((folder / "whole.txt").read_text())
    return project, weights(whole)


def say(text: str) -> None:
    """To whoever watches."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["faults", "kills", "crowd"])
    parser.add_argument("--count", type=int, default=None, help="kills (200), or trainings of the crowd (50)")
    parser.add_argument("--alive", type=int, default=8)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="of faults; may be repeated")
    parser.add_argument("--kind", choices=KINDS, action="append", help="of faults: both, or this one")
    parser.add_argument("--calls", default="", metavar="WORD", help="of faults: calls with this word in them")
    parser.add_argument("--once", action="store_true", help="of faults: of calls that are alike, the first alone")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        match chosen.step:
            case "faults":
                FOLDER.mkdir(parents=True, exist_ok=True)
                done = faults(FOLDER, chosen.only or list(SCENARIOS), chosen.kind or KINDS, chosen.calls, chosen.once)
            case "kills":
                done = kill(Path(folder), chosen.count or 200, chosen.seed)
            case _:
                done = crowd(Path(folder), chosen.count or 50, chosen.alive)
    print(f"{done}: 0 lost, 0 different, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
