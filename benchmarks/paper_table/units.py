"""The work of the comparison in pieces: one method at one choice of rates on one concept, each done once.

A unit's result is one JSON file. Whoever finds neither a result nor a claim takes the unit, so that any number
of processes can work on the same folder, and whatever is interrupted is done again.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attnbooth_cli.engine.methods import ATTNDREAMBOOTH, METHODS
from attnbooth_cli.project import durable
from benchmarks.paper_table.variants import PROBED, SUGGESTED, VARIANTS, changes_of

CONCEPTS = Path(__file__).parents[1] / "concepts"
FINALISTS = 2
"""Factors of each method that the search tries on a second concept, the best of the first."""
UNFINISHED = "python -m benchmarks.paper_table search has not come to the end of"
TABLE_CONCEPTS = 10
"""Test concepts of the table."""
PUBLISHED_CONCEPTS = 1
"""Those of them on which methods are also trained at their published rates."""
SHOWN = (6, 8, 12, 18, 19, 21)
"""Numbers of the prompts on the sheet: two environments, a colour, three styles."""
FAST_CONCEPTS = 3
"""Tuning concepts of the second look at fast mode; its contenders get them all."""

PUBLISHED = 1.0
"""The factor of the published learning rates."""
FACTORS = (PUBLISHED, 3.0, 10.0, 30.0)
"""What the search multiplies a method's published learning rates by, all of its stages' alike."""
LADDER = (0.01, 0.03, 0.1, 0.3, *FACTORS, 100.0, 300.0, 1000.0, 3000.0)
"""Where a method goes on whose best is the lowest or the highest tried, until it is not."""


@dataclass(frozen=True)
class Unit:
    """One training and its evaluation.

    Attributes:
        factor: What the method's published learning rates are multiplied by.
        split: "tuning" for the search, "test" for the table.
        variant: Of the schedule, or a probe: see `variants`.
    """

    method: str
    factor: float
    split: str
    concept: str
    variant: str = ""

    @property
    def label(self) -> str:
        """The method with its variant."""
        return f"{self.method} {self.variant}".rstrip()

    @property
    def name(self) -> str:
        """As a folder's name."""
        return f"{self.split}/{self.label.replace(' ', '-')}-x{self.factor:g}/{self.concept}"

    @property
    def images(self) -> Path:
        """What the concept is learned from."""
        return CONCEPTS / self.split / self.concept / "images"

    @property
    def truth(self) -> Path:
        """The true pictures of the 24 prompts and of the 12 complex ones, in order."""
        return CONCEPTS / self.split / self.concept / "truth"

    @property
    def category(self) -> str:
        """The concept's noun: its folder's name, "teddy-bear" -> "teddy bear"."""
        return self.concept.replace("-", " ")


def concepts(split: str) -> list[str]:
    """The names of a split's concepts, in order."""
    return sorted(path.name for path in (CONCEPTS / split).iterdir() if path.is_dir())


def rate_units() -> list[Unit]:
    """The search's first part: every method that is no ablation, at every factor, on one concept."""
    return [Unit(method, factor, "tuning", searched_on()[0]) for factor in FACTORS for method in searched()]


def wider_units(work: Path) -> list[Unit]:
    """Its second part, again and again until it is empty: the next factor for each method whose best is an end."""
    return [unit for method in searched() for unit in _beyond(work, method, searched_on()[:1])]


def finalist_units(work: Path) -> list[Unit]:
    """Its third part, when the others are done: each method's best factors on another concept."""
    return [unit for method in searched() for unit in _finalists(work, method)]


def last_units(work: Path) -> list[Unit]:
    """Its last part, again and again until it is empty: as the second, by the mean of both concepts."""
    return [unit for method in searched() for unit in _beyond(work, method, searched_on())]


def searched() -> list[str]:
    """The methods that have rates of their own."""
    return [name for name, method in METHODS.items() if name == method.family]


def table_units(best: Mapping[str, float], methods: Sequence[str] = tuple(METHODS)) -> list[Unit]:
    """Every method on the table's concepts at its best rates, then what tuning concepts suggested, then as published
    every method that has rates of its own, on the first of them."""
    names = concepts("test")[:TABLE_CONCEPTS]
    units = [replace(unit, concept=concept) for concept in names for unit in of_each_method(best, methods)]
    suggested = [(method, variant) for variant, its in SUGGESTED.items() for method in its if method in methods]
    units += [Unit(method, best[method], "test", name, its) for name in names for method, its in suggested]
    for concept in names[:PUBLISHED_CONCEPTS]:
        families = [method for method in methods if method == METHODS[method].family and best[method] != PUBLISHED]
        units += [Unit(method, PUBLISHED, "test", concept) for method in families]
    return units


def of_each_method(best: Mapping[str, float], methods: Sequence[str] = tuple(METHODS)) -> list[Unit]:
    """Every method and ablation at its best rates, and fast mode, on the first test concept."""
    concept = concepts("test")[0]
    units = [Unit(method, best[METHODS[method].family], "test", concept) for method in methods]
    return [*units, Unit(ATTNDREAMBOOTH.name, best[ATTNDREAMBOOTH.name], "test", concept, "fast")]


def fast_units(best: Mapping[str, float]) -> list[Unit]:
    """Every variant of our method's schedule on some tuning concepts."""
    ours = ATTNDREAMBOOTH.name
    names = concepts("tuning")[:FAST_CONCEPTS]
    return [Unit(ours, best[ours], "tuning", name, variant) for name in names for variant in VARIANTS]


def contender_units(best: Mapping[str, float], variant: str) -> tuple[list[Unit], list[Unit]]:
    """A contender on the tuning concepts on which it was chosen, and on the others, which alone can tell whether it
    deserved to be."""
    ours = ATTNDREAMBOOTH.name
    units = [Unit(ours, best[ours], "tuning", name, variant) for name in concepts("tuning")]
    return units[:FAST_CONCEPTS], units[FAST_CONCEPTS:]


def probe_units(best: Mapping[str, float]) -> list[Unit]:
    """What might explain a claim that did not hold, on the concepts of the search, beside each method as it is."""
    names = searched_on()
    units = [Unit(method, factor, "tuning", name) for method, factor in best.items() for name in names]
    for probe, methods in PROBED.items():
        units += [Unit(its, best[METHODS[its].family], "tuning", name, probe) for its in methods for name in names]
    return units


def settings_of(unit: Unit) -> dict[str, Any]:
    """What a unit sets of the published schedule: rates times its factor, and what its variant changes."""
    changes = changes_of(unit.variant)
    settings: dict[str, Any] = {}
    for stage in METHODS[unit.method].stages:
        its: dict[str, Any] = {"learning_rate": stage.learning_rate, **changes.get(stage.name, {})}
        if stage.embedding_rate:
            its["embedding_rate"] = stage.embedding_rate
        for key in ("learning_rate", "embedding_rate"):
            if key in its:
                its[key] = float(f"{its[key] * unit.factor:.12g}")
        settings |= {f"train.{stage.name}.{key}": value for key, value in its.items() if stage.enabled}
    return settings | {f"train.{key}": value for key, value in changes.get("", {}).items()}


def samples(unit: Unit) -> int:
    """How many noised pictures a unit's training shows the U-Net."""
    total = 0
    for stage in METHODS[unit.method].stages:
        its = {"steps": stage.steps, "batch_size": stage.batch_size, **changes_of(unit.variant).get(stage.name, {})}
        total += its["steps"] * its["batch_size"] * stage.enabled
    return total


def rates(factor: float) -> str:
    """A factor as the tables call it."""
    return "published" if factor == PUBLISHED else f"x {factor:g}"


def is_done(work: Path, unit: Unit) -> bool:
    """Whether a unit has ended, well or not."""
    return _file(work, unit).exists()


def result(work: Path, unit: Unit) -> dict[str, Any] | None:
    """What a unit gave, if it is done and did not diverge."""
    if not is_done(work, unit):
        return None
    found: dict[str, Any] = json.loads(_file(work, unit).read_text())
    return None if "diverged" in found else found


def strip_of(work: Path, unit: Unit) -> Path:
    """Where a unit's pictures for the sheet are, beside one another."""
    return work / "strips" / f"{unit.name}.webp"


def write_result(work: Path, unit: Unit, found: Mapping[str, Any]) -> None:
    """Ends a unit."""
    durable.write_json(_file(work, unit), dict(found))


def _file(work: Path, unit: Unit) -> Path:
    return work / "results" / f"{unit.name}.json"


@contextlib.contextmanager
def claimed(work: Path, unit: Unit) -> Iterator[bool]:
    """Whether this process is to do the unit now; the claim is the operating system's lock, which ends with it."""
    if is_done(work, unit):
        yield False
        return
    file = work / "claims" / f"{unit.name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield not is_done(work, unit)  # asked now, as another process may have just done it
    finally:
        lock.release()


def best_factors(work: Path, methods: Sequence[str] = ()) -> dict[str, float]:
    """With which factor the pictures of these methods (all) come out best on the tuning concepts, see `merit`.

    Raises `SystemExit` if the search has not come to their end.
    """
    best = {}
    for method in methods or searched():
        asked = [unit for unit in rate_units() if unit.method == method] + _finalists(work, method)
        further = _beyond(work, method, searched_on()[:1]) + _beyond(work, method, searched_on())
        if further or not all(is_done(work, unit) for unit in asked):
            raise SystemExit(f"{UNFINISHED} {method}")
        best[method] = ranked(work, method, searched_on())[0]
    return best


def ranked(work: Path, method: str, names: Sequence[str]) -> list[float]:
    """Those of the factors that were tried on all of these concepts, best mean merit first."""
    merits = {}
    for factor in LADDER:
        units = [Unit(method, factor, "tuning", name) for name in names]
        if all(is_done(work, unit) for unit in units):
            found = [result(work, unit) for unit in units]
            merits[factor] = sum(-math.inf if its is None else merit(its) for its in found) / len(found)
    if not merits:
        raise SystemExit(f"{UNFINISHED} {method}")
    return sorted(merits, key=lambda factor: merits[factor], reverse=True)


def searched_on() -> list[str]:
    """The two concepts of the search."""
    return concepts("tuning")[:2]


def _finalists(work: Path, method: str) -> list[Unit]:
    first, second = searched_on()
    return [Unit(method, factor, "tuning", second) for factor in ranked(work, method, [first])[:FINALISTS]]


def _beyond(work: Path, method: str, names: Sequence[str]) -> list[Unit]:
    """The next factor on all of these concepts, if the best by them is the lowest or the highest tried on the first."""
    best, tried = ranked(work, method, names)[0], ranked(work, method, names[:1])
    place = LADDER.index(best) + (best == max(tried)) - (best == min(tried))
    beyond = 0 <= place < len(LADDER) and LADDER[place] not in tried
    return [Unit(method, LADDER[place], "tuning", name) for name in names] if beyond else []


def merit(found: Mapping[str, Any]) -> float:
    """One number to choose rates by: how far identity has come from the untuned model's to the true pictures', plus
    text as a part of the true pictures'; more than the true pictures have earns nothing.

    The true pictures come to 2, and what only obeys, as the untuned model does, to 1. What only copies comes to more
    than that, as a judge finds no picture wholly unlike a prompt: the page tells how much.
    """
    untuned, true = found["untuned"]["identity"], found["truth"]["identity"]
    learned: float = min(1.0, (found["identity"] - untuned) / (true - untuned))
    obeyed: float = min(1.0, found["text"] / found["truth"]["text"])
    return learned + obeyed
