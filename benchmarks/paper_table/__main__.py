"""The paper's comparison on the bundled model: python -m benchmarks.paper_table STEP [--minutes N]

search   every method's rates, on tuning concepts
table    every method and ablation, on the test concepts
fast     schedules of our method, on tuning concepts
why      what might explain a claim that does not hold, on tuning concepts
memory   the most that each method holds, in a process of its own
page     docs/comparison.md: the tables, the plots, the sheet
(each continues; several processes may run the same step)
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH
from attnbooth_cli.errors import DivergedError
from attnbooth_cli.project import durable
from attnbooth_cli.project.documents import csv_text
from benchmarks.paper_table import page, peaks, plots, units
from benchmarks.paper_table.claims import claim_lines
from benchmarks.paper_table.measures import SECOND_OPINION
from benchmarks.paper_table.run import Desk, copied, do
from benchmarks.paper_table.units import Unit
from benchmarks.paper_table.variants import CONTENDERS

WORK = Path(__file__).parent / "record"
"""Results and the sheet's pictures, kept in the repository, and the projects they come from, which are not."""
PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"
PICTURES = PAGE.parent / "images"
PATIENCE = 5.0
"""Seconds between looks at what other processes are still doing."""


def work_through(todo: Sequence[Unit], work: Path, desk: Desk, until: float) -> bool:
    """Does what is not done, waits for what others are doing, and says whether all was done before `until`."""
    while True:
        if not work_once(todo, work, desk, until):
            return False
        if all(units.is_done(work, unit) for unit in todo):
            return True
        time.sleep(PATIENCE)


def work_once(todo: Sequence[Unit], work: Path, desk: Desk, until: float) -> bool:
    """Does what is not done and nobody else is doing; False if the time is over first."""
    for number, unit in enumerate(todo):
        if time.monotonic() > until:
            return False
        with units.claimed(work, unit) as mine:
            if mine:
                try:
                    found = do(unit, work, desk)
                    told = f"identity {found['identity']:.3f}, text {found['text']:.3f}, {found['seconds']:.0f} s"
                except DivergedError as error:  # the method's own failure at these rates, and a result like others
                    found, told = {"diverged": str(error)}, "diverged"
                units.write_result(work, unit, found)
                print(f"{number + 1}/{len(todo)} {unit.name}: {told}", file=sys.stderr, flush=True)
    return True


def search(work: Path, desk: Desk, until: float) -> bool:
    """Each method's rates; False if the time was over first."""
    if not work_through(units.rate_units(), work, desk, until):
        return False
    while further := units.wider_units(work):
        if not work_through(further, work, desk, until):
            return False
    if not work_through(units.finalist_units(work), work, desk, until):
        return False
    while further := units.last_units(work):
        if not work_through(further, work, desk, until):
            return False
    return True


def write_page(work: Path) -> None:
    """The page's tables, between the comments with their names, and its pictures; what stands around them stays."""
    best = units.best_factors(work)
    found = page.gathered(work, best)
    desk = Desk(ComponentPool())
    copies = {name: copied(desk, "test", name) for name in {name for rows in found.values() for name in rows}}
    parts = {
        "state": page.state_lines(work, best),
        "made by": page.made_by_lines(found),
        "rates": page.rates_table(work, best),
        "claims": claim_lines(found, best),
        "scores": page.main_table(found, copies),
        "beyond": page.beyond_table(found),
        "costs": page.cost_table(found, peaks.measured(work)),
        "differences": page.difference_table(found, best),
        "published": page.published_table(found, best),
        "second opinion": page.second_opinion_table(found),
        "second differences": page.difference_table(found, best, SECOND_OPINION),
        "fast": page.fast_table(work, units.fast_units(best)),
        "why": page.probe_table(work, units.probe_units(best)),
        "contenders": contender_tables(work, best),
    }
    text = PAGE.read_text("utf-8")
    for name, lines in parts.items():
        text = page.filled(text, name, lines)
    durable.write_text(PAGE, text)
    durable.write_text(work / "table.csv", csv_text(page.every_training(found)))
    durable.write_bytes(PICTURES / "comparison-scores.png", plots.scatter(found, best))
    durable.write_bytes(PICTURES / "comparison-rates.png", plots.rate_curves(work, best))
    durable.write_bytes(PICTURES / "comparison-fast.png", plots.fast_curve(work, units.fast_units(best)))
    durable.write_bytes(PICTURES / "comparison-sheet.png", plots.sheet(work, best))


def contender_tables(work: Path, best: Mapping[str, float]) -> list[str]:
    """The two schedules on the concepts on which one was chosen, and on the others."""
    old, new = (units.contender_units(best, variant) for variant in CONTENDERS)
    parts = zip(old, new, ("chosen on these concepts", "other concepts"), strict=True)
    chosen, others = (page.contender_table(work, *its) for its in parts)
    return [*chosen, *([""] if chosen and others else []), *others]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["search", "table", "fast", "why", "memory", "page"])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--minutes", type=float, default=math.inf)
    chosen = parser.parse_args()
    if chosen.step == "page":
        write_page(chosen.work)
        return 0
    if chosen.step == "memory":
        peaks.measure(units.of_each_method(units.best_factors(chosen.work)), chosen.work)
        return 0
    until = time.monotonic() + 60 * chosen.minutes
    desk, work = Desk(ComponentPool(keep=True)), chosen.work
    if chosen.step == "search":
        return 0 if search(work, desk, until) else 3
    if chosen.step == "fast":
        best = units.best_factors(work, [ATTNDREAMBOOTH.name])
        todo = units.fast_units(best)
        todo += [unit for variant in CONTENDERS for part in units.contender_units(best, variant) for unit in part]
    elif chosen.step == "why":
        todo = units.probe_units(units.best_factors(work))
    else:
        todo = units.table_units(units.best_factors(work))
    return 0 if work_through(todo, work, desk, until) else 3


if __name__ == "__main__":
    sys.exit(main())
