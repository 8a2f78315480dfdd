"""Evaluations side by side: differences from the first, paired over prompts and seeds, and never across protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.scores import Interval
from attnbooth_cli.errors import InputError

MEASURES = ("identity", "text")

_MUST_AGREE = (
    "name",
    "judge",
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
    """One evaluation in a table.

    Attributes:
        differences: From the first, by measure; empty for the first itself.
        withheld: Why there is none, by measure.
    """

    name: str
    values: Mapping[str, float]
    differences: Mapping[str, Difference]
    withheld: Mapping[str, str] = field(default_factory=dict)


def compare(reports: Mapping[str, dict[str, Any]]) -> tuple[Row, ...]:
    """A table of reports by name, in order.

    Identity is subtracted only where it is against the same training pictures, text only where the category is the
    same.

    Raises:
        InputError: two were not scored alike, or on other prompts.
    """
    (first_name, first), *others = reports.items()
    rows = [Row(first_name, _values(first, first), {})]
    for name, report in others:
        _require_alike(first_name, first, name, report)
        withheld = _withheld(first, report)
        differences = {key: _difference(first, report, key) for key in MEASURES if key not in withheld}
        rows.append(Row(name, _values(report, first), differences, withheld))
    return tuple(rows)


def side_by_side(reports: Mapping[str, dict[str, Any]]) -> tuple[tuple[Row, ...], str | None]:
    """`compare` with those that can be compared with the first, if any, and why others cannot."""
    if len(reports) < 2:
        return (), None
    first, *others = reports
    alike, why_not = {first: reports[first]}, []
    for name in others:
        try:
            compare({first: reports[first], name: reports[name]})
            alike[name] = reports[name]
        except InputError as error:
            why_not.append(error.message)
    return compare(alike) if len(alike) > 1 else (), "; ".join(why_not) or None


def _values(report: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """Means, but those by another judge, or against other pictures held out, than the first's."""
    values = {key: float(report[key]) for key in MEASURES}
    for key, found in report["overall"].items():
        if found and "mean" in found and _scored_by(found) == _scored_by(first["overall"].get(key) or {}):
            values[key] = found["mean"]
    return values


def _scored_by(found: dict[str, Any]) -> Any:
    """What a mean depends on beside the protocol's own judge: another judge, and the pictures it compares with."""
    return _judge(found.get("judge", {})), found.get("sha256")


def _require_alike(first_name: str, first: dict[str, Any], name: str, report: dict[str, Any]) -> None:
    for key in _MUST_AGREE:
        mine, its = (of["protocol"].get(key) for of in (first, report))
        same = _judge(mine) == _judge(its) if key == "judge" else mine == its
        if not same:
            said = _judges(mine, its) if key == "judge" else f"{key} is {_short(mine)} and {_short(its)}"
            raise InputError(
                f"{first_name} and {name} were not scored alike: {said}",
                "evaluate both with the same protocol, judge and settings",
            )
    mine, its = ({row["prompt"]: tuple(row["counts_for"]) for row in of["per_prompt"]} for of in (first, report))
    if mine != its:
        raise InputError(
            f"{first_name} and {name} were not scored on the same prompts: {len(mine)} and {len(its)}, "
            f"{len(set(mine.items()) & set(its.items()))} in common",
            "evaluate both on the same prompts",
        )


def _withheld(first: dict[str, Any], report: dict[str, Any]) -> dict[str, str]:
    mine, its = first["references"], report["references"]
    return {
        key: why
        for key, what, why in (
            ("identity", "sha256", "it is against other training pictures than the first's"),
            ("text", "category", "its prompts say another category than the first's"),
        )
        if mine[what] != its[what]
    }


def _difference(first: dict[str, Any], second: dict[str, Any], measure: str) -> Difference:
    """Paired by prompt and seed."""
    one, other = (_scored(of, measure) for of in (first, second))
    prompts = sum(measure in row["counts_for"] for row in first["per_prompt"])
    return Difference(*scores.paired_difference(one, other), prompts)


def _scored(report: dict[str, Any], measure: str) -> scores.Array:
    """A measure's means over each prompt's pictures, in the prompts' order; of one prompt alone, its pictures'."""
    rows = sorted((row for row in report["per_prompt"] if measure in row["counts_for"]), key=lambda row: row["prompt"])
    values = [row[measure] for row in (rows[0]["pictures"] if len(rows) == 1 else rows)]
    return np.array(values, np.float64)


def _judge(identity: Any) -> Any:
    """A judge by its weights, wherever they lie, and by how it takes pictures."""
    return {key: value for key, value in identity.items() if key not in ("ref", "revision")}


def _judges(mine: Any, its: Any) -> str:
    """In what two judges differ."""
    if mine.get("sha256") != its.get("sha256"):
        told = (f"{judge.get('ref')} (weights {str(judge.get('sha256'))[:8]})" for judge in (mine, its))
        return f"judge is {' and '.join(told)}"
    if mine.get("config_sha256") != its.get("config_sha256"):
        return f"judge {mine.get('ref')} is configured otherwise"
    return f"judge {mine.get('ref')} takes pictures in another way ({_way(mine)} and {_way(its)})"


def _way(judge: Any) -> str:
    preprocessing = judge.get("preprocessing")
    return preprocessing if isinstance(preprocessing, str) else "its own"


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 4:
        return f"{value[0]}..{value[-1]}"
    return repr(value)
