"""Evaluations side by side: differences from the first, paired over prompts and seeds, and never across protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.scores import Interval
from attnbooth_cli.errors import InputError

MEASURES = ("identity", "text")

_MUST_AGREE = (
    "name",
    "pictures_per_prompt",
    "seeds",
    "steps",
    "guidance",
    "width",
    "height",
    "scheduler",
    "negative",
)


@dataclass(frozen=True)
class Difference:
    """How much more than the first an evaluation scored, over the prompts both have."""

    mean: float
    interval: Interval | None
    prompts: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True)
class Row:
    """One evaluation in a table; `differences` is empty for the first."""

    name: str
    values: Mapping[str, float]
    differences: Mapping[str, Difference]


def compare(reports: Mapping[str, dict[str, Any]]) -> tuple[Row, ...]:
    """A table of reports by name, in order.

    Raises:
        InputError: two were not scored alike, or have no prompt in common.
    """
    (first_name, first), *others = reports.items()
    rows = [Row(first_name, _values(first), {})]
    for name, report in others:
        _require_alike(first_name, first, name, report)
        rows.append(Row(name, _values(report), {key: _difference(first, report, key, name) for key in MEASURES}))
    return tuple(rows)


def side_by_side(reports: Mapping[str, dict[str, Any]]) -> tuple[tuple[Row, ...], str | None]:
    """`compare` where there is something to compare; where it cannot be, nothing, and the reason."""
    if len(reports) < 2:
        return (), None
    try:
        return compare(reports), None
    except InputError as error:
        return (), error.message


def _values(report: dict[str, Any]) -> dict[str, float]:
    return {key: report[key] for key in MEASURES} | {
        key: found["mean"] for key, found in report["overall"].items() if found and "mean" in found
    }


def _require_alike(first_name: str, first: dict[str, Any], name: str, report: dict[str, Any]) -> None:
    for key in ("judge", *_MUST_AGREE):
        mine, its = (of["protocol"].get(key) for of in (first, report))
        same = _judge(mine) == _judge(its) if key == "judge" else mine == its
        if not same:
            raise InputError(
                f"{first_name} and {name} were not scored alike: {key} is {_short(mine)} and {_short(its)}",
                "evaluate both with the same protocol, judge and settings",
            )


def _difference(first: dict[str, Any], second: dict[str, Any], measure: str, name: str) -> Difference:
    """Paired by the prompt as it is scored and the seed: categories differ, prompts of a set do not."""
    mine, its = _by_prompt(first, measure), _by_prompt(second, measure)
    common = [prompt for prompt in mine if prompt in its]
    if not common:
        raise InputError(f"{name} has no prompt in common with the first", "evaluate both on the same prompts")
    mean, interval = scores.paired_difference(
        np.array([mine[prompt] for prompt in common]), np.array([its[prompt] for prompt in common])
    )
    return Difference(mean, interval, len(common))


def _by_prompt(report: dict[str, Any], measure: str) -> dict[str, float]:
    return {row["prompt"]: row[measure] for row in report["per_prompt"] if measure in row["counts_for"]}


def _judge(identity: Any) -> Any:
    """A judge by its weights, wherever they lie, and by how it takes pictures."""
    return {key: value for key, value in identity.items() if key not in ("ref", "revision")}


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('ref')} (weights {str(value.get('sha256'))[:8]})"
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 4:
        return f"{value[0]}..{value[-1]}"
    return repr(value)
