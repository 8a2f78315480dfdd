"""The page of a study, as a participant gets it: one file that asks, keeps the answers, and hands them out.

It is blind. Pictures are re-encoded pixels under opaque names, each pair in the order of these names; which stands on
which side, and which question comes when, is drawn by each participant's browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbooth_cli.project.pictures import load
from attnbooth_cli.reports import page

MOST_SHOWN = 6
"""Training pictures by which participants know the concept."""


@dataclass(frozen=True)
class Choice:
    """One question: a prompt, and two pictures of it by name."""

    id: str
    prompt: str
    pictures: tuple[tuple[str, Path], ...]


def write_study_page(path: Path, study: str, category: str, concept: Sequence[Path], choices: Sequence[Choice]) -> Path:
    """Writes the page.

    Args:
        concept: Training pictures; the first few are shown.
        choices: In an order that tells nothing.

    Raises:
        ResourceError: it cannot be written.
    """
    known = [load(picture) for picture in concept[:MOST_SHOWN]]
    side = page.side_for(2 * len(choices) + len(known))
    questions = [
        {
            "id": its.id,
            "prompt": its.prompt,
            "pictures": [{"id": name, "src": page.embedded(load(picture), side)} for name, picture in its.pictures],
        }
        for its in choices
    ]
    sides = [max(load(picture).size) for _, picture in choices[0].pictures]
    return page.write_page(
        path,
        "study.html",
        ["study.js"],
        title="Which picture is better?",
        category=category,
        concept=[page.embedded(picture, side) for picture in known],
        study={"id": study, "questions": questions},
        exact=max(sides) <= page.SMALL_SIDE,
    )
