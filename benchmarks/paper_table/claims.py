"""What the paper says of the methods, and whether it held here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH
from benchmarks.paper_table.measures import MEASURES, Results, family

OURS = ATTNDREAMBOOTH.name
CLOSE = {"identity": 0.03, "text": 0.01}
"""What differences are small: about a seventeenth of what is between the untuned model and the true pictures in
identity, and a sixth of it in text (our choice)."""


@dataclass(frozen=True)
class Claim:
    """That one row of the table scores more than another in every one of some measures.

    Attributes:
        close: The claim is instead that they are less apart than `CLOSE` says.
    """

    text: str
    more: str
    less: str
    measures: tuple[str, ...]
    close: bool = False


BOTH = ("identity", "text")
BESIDE: Mapping[tuple[str, ...], tuple[str, ...]] = {BOTH: ("in scenes", "text up to the true pictures'", "merit")}
"""What is told beside a claim of both numbers, of which the paper says nothing: identity where the prompt changes
nothing of the concept, text of which more than the truth's is no virtue, and both together."""
CLAIMS = (
    Claim("The method has more identity and text than Textual Inversion followed by DreamBooth", OURS, "ti-db", BOTH),
    Claim("Textual Inversion has more identity than DreamBooth", "textual-inversion", "dreambooth", ("identity",)),
    Claim("DreamBooth has more text than Textual Inversion", "dreambooth", "textual-inversion", ("text",)),
    *(
        Claim(f"The method has more identity and text than {name}", OURS, name.lower(), BOTH)
        for name in ("NeTI", "ViCo", "OFT")
    ),
    Claim("The method has more text than Textual Inversion", OURS, "textual-inversion", ("text",)),
    Claim("The method has more identity than DreamBooth", OURS, "dreambooth", ("identity",)),
    Claim("The embedding's stage helps", OURS, f"{OURS}-without-embedding", BOTH),
    Claim("The attention's stage helps", OURS, f"{OURS}-without-attention", BOTH),
    Claim("The U-Net's stage helps", OURS, f"{OURS}-without-unet", BOTH),
    Claim("The regulariser helps", OURS, f"{OURS}-without-regulariser", BOTH),
    Claim("Fast mode is close on short prompts", OURS, f"{OURS} fast", BOTH, close=True),
    Claim("Fast mode is behind on complex prompts", OURS, f"{OURS} fast", ("complex: identity", "complex: text")),
    Claim("Not the paper's: where pictures are not turned, the first claim", f"{OURS} upright", "ti-db upright", BOTH),
)


def claim_lines(found: Results, best: Mapping[str, float]) -> list[str]:
    """A sentence for each claim of which both rows have been run: the differences, and whether each held."""
    lines = []
    for claim in CLAIMS:
        more, less = (found.get((row, best.get(family(row), 0.0)), {}) for row in (claim.more, claim.less))
        common = sorted(set(more) & set(less))
        if not common:
            continue
        parts = []
        for measure in (*claim.measures, *BESIDE.get(claim.measures, ())):
            theirs, its = (np.array([MEASURES[measure](of[name]) for name in common]) for of in (less, more))
            mean, interval = scores.paired_difference(theirs, its)
            between = f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval else ""
            held = verdict(interval, close=CLOSE.get(measure, 0.0) if claim.close else 0.0)
            parts.append(f"{measure} {mean:+.3f}{between}" + (f", **{held}**" if measure in claim.measures else ""))
        of = f"`{claim.more}` less `{claim.less}`, {len(common)} concept{'s' if len(common) > 1 else ''}"
        lines.append(f"- {claim.text} ({of}): {'; '.join(parts)}.")
    return lines


def verdict(interval: scores.Interval | None, close: float = 0.0) -> str:
    """What the 95 % interval of a difference says of the claim that it is above zero, or smaller than `close`."""
    if interval is None:
        return "too few concepts"
    if close:
        if interval.low > -close and interval.high < close:
            return "held"
        return "did not hold" if interval.low > close or interval.high < -close else "not shown"
    if round(interval.low, 3) > 0:  # as it is printed
        return "held"
    return "the contrary held" if round(interval.high, 3) < 0 else "not shown"
