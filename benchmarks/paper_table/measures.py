"""What the page's tables tell of a training, by the names of their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnbooth_cli.engine.methods import METHODS
from benchmarks.paper_table.units import merit

Found = Mapping[str, Any]
"""One training's result."""
Row = tuple[str, float]
"""A method (and its variant) and the factor of its rates."""
Results = Mapping[Row, Mapping[str, dict[str, Any]]]
"""By row and concept."""

SCENES = ("background", "environment")
"""Groups of prompts that change nothing of the concept itself."""

MEASURES: Mapping[str, Callable[[Found], float]] = {
    "identity": lambda found: found["identity"],
    "in scenes": lambda found: float(np.mean([found["groups"][name]["identity"] for name in SCENES])),
    "text": lambda found: found["text"],
    "text up to the true pictures'": lambda found: min(found["text"], found["truth"]["text"]),
    "merit": merit,
    "complex: identity": lambda found: found["complex"]["identity"],
    "complex: text": lambda found: found["complex"]["text"],
    "drift": lambda found: found["drift"],
    "drift: category": lambda found: found["drift of"]["category"],
    "drift: others": lambda found: found["drift of"]["others"],
    "copies": lambda found: found["copies"],
    "second opinion: identity": lambda found: found["second opinion"]["identity"],
    "second opinion: scene": lambda found: found["second opinion"]["scene"],
    "second opinion: style": lambda found: found["second opinion"]["style"],
    "second opinion: colour": lambda found: found["second opinion"]["colour"],
    "samples": lambda found: found["samples"],
    "CPU seconds": lambda found: found["seconds"],
}
SCORES = ("identity", "in scenes", "text", "merit")
BEYOND = ("complex: identity", "complex: text", "drift: category", "drift: others", "copies")
COSTS = ("samples", "CPU seconds")
DIFFERENCES = (*SCORES, *BEYOND[:-1])
SCHEDULES = ("identity", "text", "complex: identity", "complex: text", "drift")
WHY = ("identity", "text", "merit", *SCHEDULES[2:])
OPINIONS = ("identity", "scene", "style", "colour")
"""Of the independent judges."""
SECOND_OPINION = tuple(f"second opinion: {name}" for name in OPINIONS)


def family(row: str) -> str:
    """Whose rates a row has: "attndreambooth-without-unet" and "attndreambooth fast" have attndreambooth's."""
    return METHODS[row.partition(" ")[0]].family


def by_concept(found: Results) -> list[dict[str, Any]]:
    """One result of every concept, for what does not depend on the method; one that says what the untuned model made of
    the complex prompts, where there is one, as the first did not."""
    results = [pair for rows in found.values() for pair in rows.items()]
    return list(dict(sorted(results, key=lambda pair: "untuned" in pair[1]["complex"])).values())
