"""The held-out concepts of `concepts.toml`: who they are, and what training therefore may not use."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tools.tiny.depiction import Thing
from tools.tiny.instances import Instance
from tools.tiny.objects import RESERVED_TONES

FILE = Path(__file__).with_name("concepts.toml")


@dataclass(frozen=True)
class Concept:
    """One held-out concept; `split` is "test", "tuning" or "example"."""

    name: str
    split: str
    thing: Thing
    withheld: tuple[str, ...]
    """Art that training leaves out for this concept's sake, its own first."""


@lru_cache(maxsize=1)
def held_out() -> tuple[Concept, ...]:
    """All held-out concepts, in the file's order. Raises `KeyError` for a tone that is not reserved."""
    concepts = []
    for number, row in enumerate(tomllib.loads(FILE.read_text("utf-8"))["concept"]):
        instance = Instance(
            art=row["art"],
            base=RESERVED_TONES[row["base"]],
            accent=RESERVED_TONES[row["accent"]],
            pattern=row["pattern"],
            scale=0.3,
            turn=0.5 + 0.37 * number,
        )
        withheld = (row["art"], *row.get("withheld", ()))
        concepts.append(Concept(row["name"], row["split"], Thing(row["noun"], instance), withheld))
    return tuple(concepts)


def withheld_art() -> frozenset[str]:
    """Art no model may be trained on."""
    return frozenset(art for concept in held_out() for art in concept.withheld)
