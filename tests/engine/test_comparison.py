"""Evaluations side by side."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from attnbooth_cli.engine.comparison import compare, side_by_side
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
    references = {"sha256": ["a", "b"], "category": "cat"}
    head = {"identity": identity, "text": text, "overall": overall, "references": references}
    return {**head, "protocol": fixed, "per_prompt": rows}


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
        ({"name": "textual-inversion", "judge": {"ref": "clip", "sha256": "other"}}, "name"),
        ({"steps": 50}, "steps"),
        ({"seeds": [7]}, "seeds"),
    ],
)
def test_what_was_not_scored_alike_is_not_compared(change: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=rf"a and b were not scored alike: {word} is"):
        compare({"a": report(0.3), "b": report(0.4, **change)})


def test_means_of_other_prompts_are_not_put_in_one_column() -> None:
    with pytest.raises(InputError, match="a and b were not scored on the same prompts: 6 and 3, 3 in common"):
        compare({"a": report(0.3, prompts=6), "b": report(0.4, prompts=3)})


def test_what_differs_from_the_first_is_left_out_alone() -> None:
    rows, why_not = side_by_side({"a": report(0.3), "odd": report(0.4, steps=50), "b": report(0.5)})
    assert [row.name for row in rows] == ["a", "b"]
    assert why_not == "a and odd were not scored alike: steps is 25 and 50"
    assert side_by_side({"a": report(0.3)}) == ((), None)
    assert side_by_side({"a": report(0.3), "odd": report(0.4, steps=50)})[0] == ()


def test_judges_that_see_otherwise_are_told_apart_by_how_they_see() -> None:
    judge = {"ref": "clip", "sha256": "abc", "preprocessing": {"size": 224}}
    other = {**judge, "preprocessing": "textual-inversion"}
    with pytest.raises(InputError, match=r"takes pictures in another way \(its own and textual-inversion\)"):
        compare({"a": report(0.3, judge=judge), "b": report(0.3, judge=other)})
    elsewhere = {**judge, "ref": "/a/copy", "revision": None}
    assert len(compare({"a": report(0.3, judge=judge), "b": report(0.3, judge=elsewhere)})) == 2


def test_likeness_to_other_pictures_is_shown_and_not_subtracted() -> None:
    other = report(0.4)
    other["references"] = {"sha256": ["c"], "category": "cat"}
    _, row = compare({"a": report(0.3), "b": other})
    assert set(row.differences) == {"text"}
    assert "other training pictures" in row.withheld["identity"]
    assert row.values["identity"] == 0.4
    other["references"] = {"sha256": ["a", "b"], "category": "dog"}
    _, row = compare({"a": report(0.3), "b": other})
    assert set(row.differences) == {"identity"}


def test_second_judges_are_told_where_they_are_the_same() -> None:
    def with_dino(sha256: str) -> dict[str, Any]:
        its = report(0.3)
        its["overall"]["dino identity"] = {"mean": 0.7, "judge": {"ref": "dino", "sha256": sha256}, "sha256": ["a"]}
        return its

    assert "dino identity" in compare({"a": with_dino("x"), "b": with_dino("x")})[1].values
    assert "dino identity" not in compare({"a": with_dino("x"), "b": with_dino("y")})[1].values


def test_one_prompt_is_paired_by_its_pictures() -> None:
    def single(more: float) -> dict[str, Any]:
        its = report(0.3, prompts=1)
        values = [0.1 * k + more for k in range(6)]
        its["per_prompt"][0]["pictures"] = [{"identity": value, "text": value} for value in values]
        return its

    _, row = compare({"a": single(0.0), "b": single(0.2)})
    assert row.differences["identity"].mean == pytest.approx(0.2)
    assert row.differences["identity"].interval.low == pytest.approx(0.2)
    assert row.differences["identity"].prompts == 1
