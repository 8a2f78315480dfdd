"""Recording changes nothing but what it records, and only cross-attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbooth_cli.engine.attention import (
    ReadingProcessor,
    StatisticsProcessor,
    attention_probabilities,
    cross_attention_modules,
    fused,
    processors,
    recording_statistics,
)
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.loop import checkpointing
from tests.engine.conftest import latent_shape


def inputs(components: Components, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, 32, 128, generator=generator)
    latents = torch.randn(batch, *latent_shape(components), generator=generator)
    return latents, torch.full((batch,), 300), hidden


def test_only_cross_attention_is_replaced(components: Components) -> None:
    before = dict(components.unet.attn_processors)
    with recording_statistics(components.unet, [3, 4]):
        during = components.unet.attn_processors
        changed = {name for name in before if during[name] is not before[name]}
        assert changed == {name for name in before if ".attn2." in name}
        assert all(isinstance(during[name], StatisticsProcessor) for name in changed)
    assert components.unet.attn_processors == before


def test_former_processors_come_back_after_an_error(components: Components) -> None:
    before = dict(components.unet.attn_processors)
    with pytest.raises(RuntimeError, match="boom"), recording_statistics(components.unet, [1]):
        raise RuntimeError("boom")
    assert components.unet.attn_processors == before


def test_explicit_probabilities_give_the_fused_output(components: Components) -> None:
    latents, timesteps, hidden = inputs(components)
    with torch.no_grad():
        plain = components.unet(latents, timesteps, hidden).sample
        with recording_statistics(components.unet, [3, 4]):
            recorded = components.unet(latents, timesteps, hidden).sample
    torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)


def test_maps_leave_the_output_bit_identical(components: Components) -> None:
    latents, timesteps, hidden = inputs(components)
    received: dict[str, Tensor] = {}

    def read(name: str, attn: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        received[name] = attention_probabilities(attn, query, key, mask)

    with torch.no_grad():
        plain = components.unet(latents, timesteps, hidden).sample
        with processors(components.unet, lambda name: ReadingProcessor(name, read)):
            recorded = components.unet(latents, timesteps, hidden).sample
    assert torch.equal(recorded, plain)
    assert set(received) == set(cross_attention_modules(components.unet))
    for maps in received.values():
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


def test_gradient_checkpointing_changes_neither_statistics_nor_gradients(components: Components) -> None:
    latents, timesteps, hidden = inputs(components)

    def run(wanted: bool) -> tuple[list[Tensor], Tensor, int]:
        leaf = hidden.clone().requires_grad_(True)
        with checkpointing(components.unet, wanted), recording_statistics(components.unet, [3, 4]) as recorder:
            with recorder.armed():
                output = components.unet(latents, timesteps, leaf).sample
            statistics = [layer.mean for layer in recorder.layers]
            (output.square().mean() + sum(mean.square().sum() for mean in statistics)).backward()
            assert leaf.grad is not None
            return [mean.detach() for mean in statistics], leaf.grad, len(recorder.layers)

    plain, plain_gradient, plain_count = run(False)
    checkpointed, checkpointed_gradient, checkpointed_count = run(True)
    assert (
        plain_count == checkpointed_count == len(cross_attention_modules(components.unet))
    )  # the recomputed forward pass added nothing
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(checkpointed_gradient, plain_gradient, rtol=1e-5, atol=1e-9)
    assert not components.unet.training


def test_statistics_are_float32_under_bf16_autocast(components: Components) -> None:
    latents, timesteps, hidden = inputs(components)
    with (
        torch.no_grad(),
        recording_statistics(components.unet, [3, 4]) as recorder,
        torch.autocast("cpu", torch.bfloat16),
        recorder.armed(),
    ):
        components.unet(latents, timesteps, hidden)
    assert {layer.mean.dtype for layer in recorder.layers} == {torch.float32}
    # bfloat16 has 8 bits of mantissa; float32 maps must not be such numbers
    assert any(not torch.equal(layer.mean, layer.mean.bfloat16().float()) for layer in recorder.layers)


def test_fused_inside_recording_is_plain_sampling(components: Components) -> None:
    latents, timesteps, hidden = inputs(components)
    with torch.no_grad():
        plain = components.unet(latents, timesteps, hidden).sample
        with recording_statistics(components.unet, [3, 4]), fused(components.unet):
            assert torch.equal(components.unet(latents, timesteps, hidden).sample, plain)


def test_one_prompt_for_the_whole_batch_is_projected_once(components: Components) -> None:
    """Its keys and values; and what comes out is what a prompt a sample gives."""
    unet = components.unet
    channels, side, _ = latent_shape(components)
    latents = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0))
    prompt = torch.randn(1, 77, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    rows: list[int] = []
    hooks = [
        module.to_k.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
        for module in cross_attention_modules(unet).values()
    ]
    with torch.no_grad(), recording_statistics(unet, [1, 2]) as recorder:
        found = []
        for told in (prompt.expand(3, -1, -1), prompt.repeat(3, 1, 1)):
            with recorder.armed():
                found.append((unet(latents, torch.tensor(7), told).sample, recorder.layers))
    for hook in hooks:
        hook.remove()
    layers = len(cross_attention_modules(unet))
    assert rows == [1] * layers + [3] * layers
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for once, each in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(once.mean, each.mean, rtol=1e-5, atol=1e-8)
