"""What one command over many concepts saves: python -m benchmarks.many [--concepts N] [--fast-concepts N] [--pairs N]

First the ratio of times of one `attnbooth train` over N concepts on `tiny` to N processes with one concept each, at 10,
10 and 20 steps of 4 samples; half of the processes run before the command and half after it, so that a machine whose
speed drifts favours neither. Then, with --fast schedules in one process, what the loop adds to the runs themselves:
everything between their ends that is no run, and the restoring of the base model, as a part of the runs' time. The
first concept, which loads the base model, does not count there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCHEDULE = tuple(
    f"--set=train.{stage}.{key}"
    for stage, steps in (("embedding", 10), ("attention", 10), ("unet", 20))
    for key in (f"steps={steps}", "batch_size=4")
)


def example_projects(folder: Path, count: int) -> list[Path]:
    """New projects with the bundled pictures and base model."""
    from attnbooth_cli.cli.app import run

    roots = [folder / f"concept{number}" for number in range(count)]
    for root in roots:
        with contextlib.redirect_stdout(io.StringIO()):
            assert run(["init", str(root), "--example", "-q"]) == 0
    return roots


def trained(roots: list[Path], *arguments: str) -> float:
    """Seconds of one `attnbooth train` as a process of its own."""
    command = [sys.executable, "-m", "attnbooth_cli", "train", *map(str, roots), *arguments, "--restart", "-q"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def compared(roots: list[Path], *arguments: str) -> tuple[float, float]:
    """Seconds of one command over all, with these arguments, and of one process for each."""
    middle = (len(roots) + 1) // 2
    alone = sum(trained([root], *SCHEDULE) for root in roots[:middle])
    together = trained(roots, *SCHEDULE, *arguments)
    alone += sum(trained([root], *SCHEDULE) for root in roots[middle:])
    return together, alone


def loop(roots: list[Path], *arguments: str) -> tuple[float, float]:
    """Seconds that runs after the first took in one command, and what the loop added to them."""
    from attnbooth_cli.cli.app import run
    from attnbooth_cli.engine.families import ComponentPool, Components

    restoring: list[float] = []
    take = ComponentPool.take

    def timed(self: ComponentPool, base: Any) -> Components:
        began = time.perf_counter()
        components = take(self, base)
        restoring.append(time.perf_counter() - began)
        return components

    ComponentPool.take = timed  # type: ignore[method-assign]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            assert run(["train", *map(str, roots), *arguments, "--json", "-q"]) == 0
    finally:
        ComponentPool.take = take  # type: ignore[method-assign]
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    inside = [event["seconds"] for event in events if event["event"] == "done"]
    summary = events[-1]
    whole = [row["seconds"] for row in summary["projects"]]
    between = summary["seconds"] - sum(whole)
    runs = sum(inside[1:]) - sum(restoring[1:])
    return runs, sum(whole[1:]) - runs + between


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=1, help="how often to compare one command with N processes")
    parser.add_argument("--executor", choices=["here", "ray"], default="here", help="of the one command")
    parser.add_argument("--fast-concepts", type=int, default=4, help="in the loop with --fast; 0 leaves it out")
    parser.add_argument("--loop-set", action="append", default=[], help="settings of that loop, KEY=VALUE")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: dict[str, Any] = {"concepts": chosen.concepts, "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder:
        if chosen.pairs:
            roots = example_projects(Path(folder), chosen.concepts)
            pairs = [compared(roots, "--executor", chosen.executor) for _ in range(chosen.pairs)]
            found["executor"] = chosen.executor
            found["one command, s"] = [round(together, 1) for together, _ in pairs]
            found["processes, s"] = [round(alone, 1) for _, alone in pairs]
            found["ratio"] = round(statistics.median(together / alone for together, alone in pairs), 3)
            print(f"one command / {chosen.concepts} processes: {found['ratio']}", file=sys.stderr, flush=True)
        if chosen.fast_concepts > 1:
            roots = example_projects(Path(folder) / "fast", chosen.fast_concepts)
            runs, added = loop(roots, "--fast", *(f"--set={setting}" for setting in chosen.loop_set))
            found |= {"runs, s": round(runs, 2), "loop, s": round(added, 2), "loop adds": round(added / runs, 4)}
            print(f"the loop adds {100 * added / runs:.2f} %", file=sys.stderr, flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
