"""What the paper says of the methods, and whether it held here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH
from benchmarks.paper_table.page import COLUMNS, Results, family

OURS = ATTNDREAMBOOTH.name
CLOSE = 0.03
"""What difference of cosines is small (our choice; the intervals of a method over ten concepts are wider)."""


@dataclass(frozen=True)
class Claim:
    """That one row of the table scores more than another in every one of some measures.

    Attributes:
        close: The claim is instead that they are less than `CLOSE` apart.
    """

    text: str
    more: str
    less: str
    measures: tuple[str, ...]
    close: bool = False


BOTH = ("identity", "text")
CLAIMS = (
    Claim("The method has more identity and text than Textual Inversion followed by DreamBooth", OURS, "ti-db", BOTH),
    Claim("Textual Inversion has more identity than DreamBooth", "textual-inversion", "dreambooth", ("identity",)),
    Claim("DreamBooth has more text than Textual Inversion", "dreambooth", "textual-inversion", ("text",)),
    Claim("The method has more text than Textual Inversion", OURS, "textual-inversion", ("text",)),
    Claim("The method has more identity than DreamBooth", OURS, "dreambooth", ("identity",)),
    Claim("The embedding's stage helps", OURS, f"{OURS}-without-embedding", BOTH),
    Claim("The attention's stage helps", OURS, f"{OURS}-without-attention", BOTH),
    Claim("The U-Net's stage helps", OURS, f"{OURS}-without-unet", BOTH),
    Claim("The regulariser helps", OURS, f"{OURS}-without-regulariser", BOTH),
    Claim("Fast mode is close on short prompts", OURS, f"{OURS} fast", BOTH, close=True),
    Claim("Fast mode is behind on complex prompts", OURS, f"{OURS} fast", ("complex: identity", "complex: text")),
)


def claim_lines(found: Results, best: Mapping[str, float]) -> list[str]:
    """A sentence for each claim of which both rows have been run: whether it held, and the differences it rests on."""
    lines = []
    for claim in CLAIMS:
        more, less = (found.get((row, best.get(family(row), 0.0)), {}) for row in (claim.more, claim.less))
        common = sorted(set(more) & set(less))
        if not common:
            continue
        verdicts, parts = [], []
        for measure in claim.measures:
            theirs, its = (np.array([COLUMNS[measure](of[name]) for name in common]) for of in (less, more))
            mean, interval = scores.paired_difference(theirs, its)
            verdicts.append(verdict(interval, close=claim.close))
            between = f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval else ""
            parts.append(f"{measure} {mean:+.3f}{between}")
        lines.append(
            f"- {claim.text}: **{together(verdicts)}**. `{claim.more}` less `{claim.less}`: {', '.join(parts)}."
        )
    return lines


def together(verdicts: Sequence[str]) -> str:
    """What the verdicts on a claim's measures say of the claim."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "held in part" if "held" in verdicts else "did not hold"


def verdict(interval: scores.Interval | None, *, close: bool = False) -> str:
    """What the 95 % interval of a difference says of the claim that it is above zero, or smaller than `CLOSE`."""
    if interval is None:
        return "not shown"
    if close:
        if interval.low > -CLOSE and interval.high < CLOSE:
            return "held"
        return "did not hold" if interval.low > CLOSE or interval.high < -CLOSE else "not shown"
    if interval.low > 0:
        return "held"
    return "the contrary held" if interval.high < 0 else "not shown"
