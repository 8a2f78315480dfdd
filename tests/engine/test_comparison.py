"""Evaluations side by side."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from attnbooth_cli.engine.comparison import compare
from attnbooth_cli.errors import InputError


def report(identity: float, text: float = 0.5, prompts: int = 6, **protocol: Any) -> dict[str, Any]:
    rows = [
        {
            "prompt": f"a {{}} number {k}",
            "counts_for": ["identity", "text"],
            "identity": identity + 0.01 * k,
            "text": text + 0.02 * (k % 2),
        }
        for k in range(prompts)
    ]
    fixed = {"name": "attnbooth", "judge": {"ref": "tiny"}, "seeds": [0, 1], "steps": 25} | protocol
    overall = {"identity": {"mean": identity}, "drift": None, "copies": {"count": 0}}
    return {"identity": identity, "text": text, "overall": overall, "protocol": fixed, "per_prompt": rows}


def test_differences_are_paired_over_prompts() -> None:
    first, second = compare({"a": report(0.3), "b": report(0.4, 0.45)})
    assert first.differences == {}
    assert second.differences["identity"].mean == pytest.approx(0.1)
    assert second.differences["identity"].interval.low == pytest.approx(0.1)
    assert second.differences["text"].mean == pytest.approx(-0.05)
    assert second.differences["identity"].clear
    assert second.differences["identity"].prompts == 6


def test_no_difference_is_not_clear() -> None:
    _, same = compare({"a": report(0.3), "b": copy.deepcopy(report(0.3))})
    assert same.differences["identity"].mean == 0
    assert not same.differences["identity"].clear


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "dreambooth"}, "name"),
        ({"judge": {"ref": "tiny", "sha256": "other"}}, "judge"),
        ({"steps": 50}, "steps"),
        ({"seeds": [7]}, "seeds"),
    ],
)
def test_what_was_not_scored_alike_is_not_compared(change: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=rf"a and b were not scored alike: {word} is"):
        compare({"a": report(0.3), "b": report(0.4, **change)})


def test_only_common_prompts_count_and_there_must_be_some() -> None:
    _, second = compare({"a": report(0.3, prompts=6), "b": report(0.4, prompts=3)})
    assert second.differences["identity"].prompts == 3
    alone = report(0.3)
    alone["per_prompt"] = [{**alone["per_prompt"][0], "prompt": "another {}"}]
    with pytest.raises(InputError, match="no prompt in common"):
        compare({"a": report(0.3), "b": alone})
