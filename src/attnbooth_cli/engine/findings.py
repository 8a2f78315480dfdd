"""What the views of an inspection say, in numbers: rows a word for people and JSON, a CSV, and arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnbooth_cli.engine.maps import overlap
from attnbooth_cli.engine.views import View, counterpart
from attnbooth_cli.project.documents import csv_text
from attnbooth_cli.reports.attention import Seen


def numbers(view: View, base: View | None) -> list[dict[str, Any]]:
    """One row a word: what it gets, and how far that is from the category's word and from the base model.

    share            of all attention: mean over positions, heads, layers and steps
    mean, variance   of a token's attention as the regulariser sees it, mean over layers and steps; None for buckets
    peak             the highest value of the word's map
    overlap_with_category, overlap_with_base    see `maps.overlap`; the base model's own [V] is its category's word
    share_in_base    the same word's share there
    """
    recording = view.recording
    maps, share = recording.maps[0], recording.share[0].mean(0)
    category = next((word for word in recording.words if word.kind == "category"), None)
    rows = []
    for index, word in enumerate(recording.words):
        other = counterpart(word, base.recording.words) if base and base is not view else None
        row: dict[str, Any] = {
            "word": word.text,
            "kind": word.kind,
            "tokens": len(word.positions),
            "share": float(share[index]),
            "mean": _number(recording.mean[0, :, index]),
            "variance": _number(recording.variance[0, :, index]),
            "peak": float(maps[index].max()),
            "overlap_with_category": None,
            "share_in_base": None,
            "overlap_with_base": None,
        }
        if category and word.kind == "placeholder":
            row["overlap_with_category"] = overlap(maps[index], maps[recording.words.index(category)])
        if other and base:
            place = base.recording.words.index(other)
            row["share_in_base"] = float(base.recording.share[0].mean(0)[place])
            row["overlap_with_base"] = overlap(maps[index], base.recording.maps[0, place])
        rows.append(row)
    return rows


def _number(values: Tensor) -> float | None:
    return None if bool(values.isnan().any()) else float(values.mean())


def document(view: View, base: View | None) -> dict[str, Any]:
    """A view without its pictures."""
    gaps = view.recording.gaps
    terms = None if gaps is None else gaps[0].mean(0).tolist()
    return {
        "label": view.label,
        "project": view.project,
        "run": view.run,
        "stage": view.stage,
        "method": view.method,
        "prompt": view.prompt,
        "timesteps": list(view.timesteps) or None,
        "regulariser": None if terms is None else {"mean_gap": terms[0], "variance_gap": terms[1]},
        "words": numbers(view, base),
        "layers": [dataclasses.asdict(layer) for layer in view.recording.layers],
    }


def arrays(views: Sequence[View], main: View) -> dict[str, Tensor]:
    """What `maps.safetensors` holds: `WORD` [y, x] and `steps/WORD` [s, y, x] of the main view, and
    `views/LABEL/WORD` [y, x] of the others; float32, the steps float16."""
    found: dict[str, Tensor] = {}
    for index, word in enumerate(main.recording.words):
        found[word.text] = main.recording.maps[0, index].contiguous()
        found[f"steps/{word.text}"] = main.recording.steps[0, :, index].to(torch.float16).contiguous()
    for view in (view for view in views if view is not main):
        for index, word in enumerate(view.recording.words):
            found[f"views/{view.label}/{word.text}"] = view.recording.maps[0, index].contiguous()
    return found


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    """All views' numbers as CSV, a row a view and word."""
    rows = [
        {"view": its["label"], **{name: value for name, value in row.items() if name != "map"}}
        for its in documents
        for row in its["words"]
    ]
    return csv_text(rows)


def seen(view: View) -> Seen:
    """A view as it is drawn."""
    recording = view.recording
    words = [word for word in recording.words if word.kind != "bucket"]
    named = [word for kind in ("placeholder", "category") for word in words if word.kind == kind]
    return Seen(
        view.label,
        view.picture,
        tuple(word.text for word in recording.words),
        frozenset(word.text for word in recording.words if word.kind == "bucket"),
        tuple(word.text for word in (*named, *reversed([word for word in words if word not in named]))),
        recording.steps[0].numpy(),
        view.timesteps,
        first_step=view.first_step,
    )
