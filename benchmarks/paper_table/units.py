"""The work of the comparison in pieces: one method at one choice of rates on one concept, each done once.

A unit's result is one JSON file. Whoever finds neither a result nor a living claim takes the unit, so that any number
of processes can work on the same folder, and whatever is interrupted is done again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbooth_cli.engine.methods import METHODS
from attnbooth_cli.project import durable

CONCEPTS = Path(__file__).parents[1] / "concepts"
FACTORS = (1.0, 3.0, 10.0, 30.0)
"""What the search multiplies a method's published learning rates by, all of its stages' alike: the same four for every
method, so that none has a larger budget."""
SEARCH_CONCEPTS = 2
"""Tuning concepts of the search."""
PUBLISHED = 1.0


@dataclass(frozen=True)
class Unit:
    """One training and its evaluation.

    Attributes:
        factor: Of the method's published learning rates.
        split: "tuning" for the search, "test" for the table.
    """

    method: str
    factor: float
    split: str
    concept: str

    @property
    def name(self) -> str:
        """As a folder's name."""
        return f"{self.split}/{self.method}-x{self.factor:g}/{self.concept}"

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


def search_units(methods: Sequence[str] = tuple(METHODS)) -> list[Unit]:
    """Every method that is no ablation, at every factor."""
    tried = [name for name in methods if name == METHODS[name].family]
    names = concepts("tuning")[:SEARCH_CONCEPTS]
    return [Unit(method, factor, "tuning", name) for name in names for factor in FACTORS for method in tried]


def table_units(best: Mapping[str, float], methods: Sequence[str] = tuple(METHODS)) -> list[Unit]:
    """Every method on every test concept at its best factor and at its published rates; ablations have the factor of
    their method, and are not run at the published ones."""
    units = []
    for concept in concepts("test"):
        for method in methods:
            family = METHODS[method].family
            factors = {best[family], PUBLISHED} if method == family else {best[family]}
            units += [Unit(method, factor, "test", concept) for factor in sorted(factors, reverse=True)]
    return units


def result(work: Path, unit: Unit) -> dict[str, Any] | None:
    """What a unit gave, if it is done."""
    file = work / "results" / f"{unit.name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def write_result(work: Path, unit: Unit, found: Mapping[str, Any]) -> None:
    """Ends a unit."""
    durable.write_json(work / "results" / f"{unit.name}.json", dict(found))


@contextlib.contextmanager
def claimed(work: Path, unit: Unit) -> Iterator[bool]:
    """Whether this process may do the unit now; a claim whose process is gone is nobody's."""
    file = work / "claims" / f"{unit.name}.pid"
    file.parent.mkdir(parents=True, exist_ok=True)
    if result(work, unit) is not None or not _taken(file):
        yield False
        return
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)


def _taken(file: Path) -> bool:
    with contextlib.suppress(FileExistsError):
        file.touch(exist_ok=False)
        file.write_text(str(os.getpid()))
        return True
    owner = file.read_text() or "0"
    if owner != "0" and not Path(f"/proc/{owner}").exists():
        file.unlink(missing_ok=True)
        return _taken(file)
    return False


def best_factors(work: Path) -> dict[str, float]:
    """The factor of every method's rates at which its pictures are best on the tuning concepts, see `merit`."""
    merits: dict[str, dict[float, list[float]]] = {}
    for unit in search_units():
        if (found := result(work, unit)) is not None:
            merits.setdefault(unit.method, {}).setdefault(unit.factor, []).append(merit(found))
    return {
        method: max(by_factor, key=lambda factor: sum(by_factor[factor]) / len(by_factor[factor]))
        for method, by_factor in merits.items()
    }


def merit(found: Mapping[str, Any]) -> float:
    """One number to choose rates by: identity as a part of the true pictures', plus text as a part of the untuned
    model's. A method that only copies, and one that only obeys, both come to about 1."""
    identity: float = found["identity"] / found["truth"]["identity"]
    text: float = found["text"] / found["untuned"]["text"]
    return identity + text
