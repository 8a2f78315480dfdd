"""From features to the tables of a report: per picture, per prompt, per group and overall.

r  reference pictures      p  prompts
n  pictures of a prompt    d  width of the judge's space
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.question import Question, without_concept, without_placeholder
from attnbooth_cli.engine.scores import Array
from attnbooth_cli.engine.tokens import Placeholder
from attnbooth_cli.project.documents import csv_text

Summary = dict[str, Any]
"""`mean`, `low` and `high` of its interval (None for too few), how many `prompts` it is over, and what was resampled
(`over`): prompts, or the pictures of the only one."""


@dataclass(frozen=True)
class Wordings:
    """The prompts of a question as they are scored; `rest` is None where nothing is left without the concept."""

    full: tuple[str, ...]
    rest: tuple[str | None, ...]


@dataclass(frozen=True)
class Features:
    """A CLIP judge's features, L2-normalised.

    Attributes:
        references: [r, d].
        altered: [a, r, d], slight alterations of the references.
        pictures: [p, n, d].
        alike: [pn, r], which pictures are laid out as which references.
        full, rest: [p, d], of the prompts with the category's word, and without the concept.
    """

    references: Array
    altered: Array
    pictures: Array
    alike: NDArray[np.bool_]
    full: Array
    rest: Array


def wordings(question: Question, placeholder: Placeholder) -> Wordings:
    """How each prompt is scored."""
    return Wordings(
        tuple(without_placeholder(text, placeholder) for text in question.prompts),
        tuple(without_concept(text, placeholder) for text in question.prompts),
    )


def clip_scores(question: Question, texts: Wordings, features: Features, names: Sequence[str]) -> dict[str, Any]:
    """Everything that CLIP alone says: `identity`, `text`, `overall`, `groups`, `references` and `per_prompt`.

    Args:
        names: Of the reference pictures.
    """
    prompts, flat = question.prompts, features.pictures.reshape(-1, features.pictures.shape[-1])
    identity = scores.identity(features.references, flat).reshape(len(prompts), -1)
    text = scores.text(features.full, features.pictures)
    survival = scores.text(features.rest, features.pictures)
    survival[[left is None for left in texts.rest]] = np.nan
    survival[[prompt not in question.text_prompts for prompt in prompts]] = np.nan
    diversity = scores.diversity(features.pictures)
    closest, which = scores.nearest(features.references, flat)
    copied = scores.copies(features.references, features.altered, flat, features.alike)
    counts = {
        "identity": np.array([prompt in question.identity_prompts for prompt in prompts]),
        "text": np.array([prompt in question.text_prompts for prompt in prompts]),
    }
    group_of = [group for group, its in question.groups.items() for _ in its]
    n = question.n
    rows = [
        {
            "group": group_of[i],
            "prompt": prompt,
            "scored_as": texts.full[i],
            "counts_for": [name for name, its in counts.items() if its[i]],
            "identity": float(identity[i].mean()),
            "text": float(text[i].mean()),
            "diversity": _number(diversity[i]),
            "survival": _number(survival[i].mean()),
            "survival_scored_as": texts.rest[i],
            "pictures": [
                {
                    "seed": seed,
                    "identity": float(identity[i, k]),
                    "text": float(text[i, k]),
                    "nearest": names[which[i * n + k]],
                    "nearest_cosine": float(closest[i * n + k]),
                    "copy": bool(copied[i * n + k] >= 0),
                    "copy_of": names[copied[i * n + k]] if copied[i * n + k] >= 0 else None,
                }
                for k, seed in enumerate(question.seeds)
            ],
        }
        for i, prompt in enumerate(prompts)
    ]
    values = {
        "identity": identity[counts["identity"]],
        "text": text[counts["text"]],
        "survival": survival,
        "diversity": diversity[:, None],
    }
    among = scores.cosines(features.references, features.references)[~np.eye(len(features.references), dtype=bool)]
    return {
        "identity": float(values["identity"].mean()),
        "text": float(values["text"].mean()),
        "overall": {name: summary(its) for name, its in values.items()}
        | {"copies": {"count": int((copied >= 0).sum()), "of": len(flat)}},
        "references": {"count": len(names), "identity": float(among.mean()) if len(among) else None},
        "groups": {
            group: {
                name: summary(value[counts[name] & _in_group(group_of, group)])
                for name, value in {"identity": identity, "text": text}.items()
            }
            for group in question.groups
        },
        "per_prompt": rows,
    }


def picture_table(report: Mapping[str, Any]) -> str:
    """The scores of every picture, a line each, as CSV with a header."""
    files = iter(report["pictures"])
    rows = [
        {"group": row["group"], "prompt": row["prompt"], "file": next(files), **its}
        for row in report["per_prompt"]
        for its in row["pictures"]
    ]
    return csv_text(rows)


def protocol_record(question: Question, judge: Mapping[str, Any], references: int) -> dict[str, Any]:
    """All that makes scores comparable."""
    return {
        "name": question.protocol.name,
        "source": question.protocol.source,
        "deviations": dict(question.deviations),
        "judge": dict(judge),
        "references": references,
        "prompts": len(question.prompts),
        "pictures_per_prompt": question.n,
        "seeds": list(question.seeds),
        **dataclasses.asdict(question.settings),
    }


def summary(values: Array) -> Summary | None:
    """Mean and interval over prompts of values [p, n], or over the pictures of the only prompt; prompts that have none
    are left out."""
    rows = values.reshape(len(values), -1) if values.size else np.empty((0, 1))
    rows = rows[~np.isnan(rows).any(1)]
    if not len(rows):
        return None
    interval = scores.bootstrap(rows[0] if len(rows) == 1 else rows.mean(1))
    ends = {"low": interval.low, "high": interval.high} if interval else {"low": None, "high": None}
    over = "pictures" if len(rows) == 1 else "prompts"
    return {"mean": float(rows.mean(1).mean()), **ends, "prompts": len(rows), "over": over}


def _in_group(group_of: Sequence[str], group: str) -> NDArray[np.bool_]:
    return np.array([its == group for its in group_of])


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return None if np.isnan(value) else float(value)
