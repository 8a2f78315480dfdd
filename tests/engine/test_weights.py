"""Tensors that are all right, and such that are not."""

from __future__ import annotations

import pytest
import torch

from attnbooth_cli.engine.weights import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, -1])
def test_one_number_that_is_none_is_found(dtype: torch.dtype, bad: float, place: int) -> None:
    tensors = {"first": torch.randn(7, 5).to(dtype), "empty": torch.empty(0, dtype=dtype), "last": torch.ones(3)}
    assert all_finite(tensors)
    tensors["first"].view(-1)[place] = bad
    assert not all_finite(tensors)


def test_numbers_as_large_as_their_type_allows_are_finite() -> None:
    assert all_finite({"a": torch.tensor([torch.finfo(torch.float32).max, torch.finfo(torch.float32).min])})
    assert all_finite({})
