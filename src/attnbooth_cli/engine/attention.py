"""Cross-attention that records what the method reads, and nothing else.

Only `attn2` is touched: self-attention keeps its fused kernel. Two processors share the projections:

- `StatisticsProcessor` (training) computes explicit probabilities in float32, whatever the autocast, uses them for the
  output, and keeps the mean and variance of a few token columns.
- `ReadingProcessor` (inspection) keeps the fused kernel for the output, bit for bit, and lets a function read the same
  queries and keys beside it.

Letters in shapes: b samples, h heads, p query positions, t prompt tokens, d channels of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnbooth_cli.engine.losses import TokenStatistics, at_least_float32, token_statistics

CROSS_ATTENTION_SUFFIX = ".attn2"
"""diffusers' name for the cross-attention module of a transformer block."""


def cross_attention_modules(unet: nn.Module) -> dict[str, Any]:
    """The U-Net's cross-attention modules by name, in registration order."""
    return {name: module for name, module in unet.named_modules() if name.endswith(CROSS_ATTENTION_SUFFIX)}


class StatisticsRecorder:
    """Collects one `TokenStatistics` a layer while armed.

    It is armed only for the forward pass: gradient checkpointing calls the processors again during backward, and
    keeping those results would keep their graphs alive.
    """

    def __init__(self, columns: Sequence[int]) -> None:
        self.columns = list(columns)
        self.layers: list[TokenStatistics] = []
        self._armed = False

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Collects during the block, starting from nothing."""
        self.layers = []
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def add(self, probabilities: Tensor) -> None:
        """Takes [b, h, p, t] probabilities. The reduction runs even when disarmed, because a recomputed forward pass
        must repeat the first one's operations exactly."""
        reduced = token_statistics(probabilities[..., self.columns])
        if self._armed:
            self.layers.append(reduced)


class StatisticsProcessor:
    """A diffusers attention processor with explicit float32 probabilities, reported to a recorder."""

    def __init__(self, recorder: StatisticsRecorder) -> None:
        self.recorder = recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        query, key, value = project(attn, hidden_states, encoder_hidden_states)
        probabilities = attention_probabilities(attn, query, key, _mask(attn, attention_mask, key))
        self.recorder.add(probabilities)
        return project_out(attn, torch.matmul(probabilities.to(value.dtype), value))


Read = Callable[[str, Any, Tensor, Tensor, Tensor | None], None]
"""Takes a layer's name, its `Attention` module, its query and key as `project` gives them, and its prepared mask."""


class ReadingProcessor:
    """A diffusers attention processor with the fused kernel, whose queries and keys a function reads as well."""

    def __init__(self, layer: str, read: Read) -> None:
        self.layer = layer
        self.read = read

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        query, key, value = project(attn, hidden_states, encoder_hidden_states)
        mask = _mask(attn, attention_mask, key)
        self.read(self.layer, attn, query, key, mask)
        return project_out(attn, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


def project(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values.

    Args:
        attn: diffusers' `Attention` module.
        hidden_states: [b, p, channels].
        encoder_hidden_states: [b, t, cross_attention_dim]; None for self-attention.

    Returns:
        query [b, h, p, d], key and value [b, h, t, d].
    """
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    if context.stride(0) == 0:  # one prompt for the whole batch: its keys and values are computed once
        context = context[:1]
    if encoder_hidden_states is not None and attn.norm_cross:
        context = attn.norm_encoder_hidden_states(context)
    query, key, value = (
        projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
    )
    key, value = (projected.expand(len(query), -1, -1, -1) for projected in (key, value))
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    return query, key, value


def attention_probabilities(attn: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) in float32 whatever the autocast. Returns [b, h, p, t].

    Token means are near 1/77 and squared differences of them fall below float16's range.

    Args:
        mask: Added to the scores, broadcast to their shape.
    """
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.matmul(at_least_float32(query) * attn.scale, at_least_float32(key).transpose(-1, -2))
        if mask is not None:
            scores = scores + mask
        probabilities: Tensor = scores.softmax(dim=-1)
        return probabilities


def project_out(attn: Any, attended: Tensor) -> Tensor:
    """Joins the heads of `attended` [b, h, p, d] and applies the output projection. Returns [b, p, channels]."""
    hidden_states = attended.transpose(1, 2).flatten(2)
    output: Tensor = attn.to_out[1](attn.to_out[0](hidden_states)) / attn.rescale_output_factor
    return output


@contextlib.contextmanager
def processors(unet: Any, make: Callable[[str], Any]) -> Iterator[None]:
    """Installs `make(layer name)` on every cross-attention module and restores the former ones, errors included."""
    modules = cross_attention_modules(unet)
    former = {name: module.processor for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.set_processor(make(name))
        yield
    finally:
        for name, module in modules.items():
            module.set_processor(former[name])


@contextlib.contextmanager
def recording_statistics(unet: Any, columns: Sequence[int]) -> Iterator[StatisticsRecorder]:
    """Installs statistics processors for the block.

    Args:
        columns: Prompt positions, [V] tokens first and the category's first token last.
    """
    recorder = StatisticsRecorder(columns)
    with processors(unet, lambda _: StatisticsProcessor(recorder)):
        yield recorder


def _mask(attn: Any, attention_mask: Tensor | None, key: Tensor) -> Tensor | None:
    if attention_mask is None:
        return None
    prepared: Tensor = attn.prepare_attention_mask(attention_mask, key.shape[2], key.shape[0])
    return prepared.view(key.shape[0], attn.heads, -1, prepared.shape[-1])


@contextlib.contextmanager
def fused(unet: Any) -> Iterator[None]:
    """Gives every cross-attention module diffusers' fused kernel during the block, for sampling amid training."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    with processors(unet, lambda _: AttnProcessor2_0()):
        yield
