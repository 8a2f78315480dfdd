"""The objective against independent computations in float64."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from attnbooth_cli.engine.attention import cross_attention_modules, recording_statistics
from attnbooth_cli.engine.families import FAMILIES, Components
from attnbooth_cli.engine.losses import (
    attention_regularisation,
    diffusion_loss,
    diffusion_target,
    min_snr_weights,
    token_statistics,
)
from attnbooth_cli.engine.tokens import recorded_positions
from tests.engine.conftest import latent_shape, make_subject


def regulariser_by_hand(
    maps: list, v: list[int], c: int, mean_weight: float, variance_weight: float
) -> tuple[float, float]:
    """The two terms with plain Python sums. `maps`: one nested list [b][h][p][t] of probabilities a layer."""

    def moments(sample: list, token: int) -> tuple[float, float]:
        values = [row[token] for head in sample for row in head]
        mean = math.fsum(values) / len(values)
        return mean, math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)

    of_means = of_variances = 0.0
    for layer in maps:
        for sample in layer:
            mean_c, variance_c = moments(sample, c)
            found = [moments(sample, token) for token in v]
            of_means += mean_weight * sum((mean - mean_c) ** 2 for mean, _ in found) / len(v)
            of_variances += variance_weight * sum((variance - variance_c) ** 2 for _, variance in found) / len(v)
    return of_means / len(maps), of_variances / len(maps)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("vectors", [1, 2])
def test_regulariser_on_random_maps(batch: int, vectors: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 2, 16, 9), (batch, 4, 4, 9), (batch, 1, 9, 9)]
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).softmax(-1) for shape in shapes]
    columns = [*range(3, 3 + vectors), 3 + vectors]
    statistics = [token_statistics(layer[..., columns]) for layer in maps]
    expected = regulariser_by_hand([layer.tolist() for layer in maps], columns[:-1], columns[-1], 2.0, 5.0)
    of_means, of_variances = attention_regularisation(statistics, 2.0, 5.0)
    assert (of_means + of_variances).item() == pytest.approx(sum(expected), rel=1e-12)
    assert (of_means.item(), of_variances.item()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("vectors", [1, 2])
def test_regulariser_in_the_unet_equals_hooked_projections(components: Components, batch: int, vectors: int) -> None:
    """R from the recorder equals softmax(q k^T) in float64 from hooks on to_q and to_k, to 1e-5."""
    subject = make_subject(components, vectors)
    (encoder,) = components.text_encoders
    columns = recorded_positions(encoder.tokenizer, subject.placeholder, subject.prompts[0], 32)
    assert len(columns) == vectors + 1
    projected: dict[str, dict[str, torch.Tensor]] = {}
    handles = []
    for name, module in cross_attention_modules(components.unet).items():
        for part in ("to_q", "to_k"):

            def keep(_m: object, _a: object, output: torch.Tensor, name: str = name, part: str = part) -> None:
                projected.setdefault(name, {})[part] = output.double()

            handles.append(getattr(module, part).register_forward_hook(keep))
    with torch.no_grad():
        conditioning = FAMILIES["stable-diffusion"].encode(components, subject.prompts)
        hidden = conditioning["encoder_hidden_states"].expand(batch, -1, -1)
        latents = torch.randn(batch, *latent_shape(components), generator=torch.Generator().manual_seed(2))
        with recording_statistics(components.unet, columns) as recorder, recorder.armed():
            components.unet(latents, torch.arange(batch) * 200 + 10, hidden)
    for handle in handles:
        handle.remove()
    maps = []
    for name, module in cross_attention_modules(components.unet).items():
        q, k = (projected[name][part].unflatten(-1, (module.heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
        maps.append((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).tolist())
    assert len(recorder.layers) == len(maps) > 6
    expected = regulariser_by_hand(maps, columns[:-1], columns[-1], 2.0, 5.0)
    found = attention_regularisation(recorder.layers, 2.0, 5.0)
    assert [term.item() for term in found] == pytest.approx(expected, rel=1e-5)


def test_neither_side_of_the_regulariser_is_detached() -> None:
    logits = torch.randn(2, 2, 16, 5, requires_grad=True, dtype=torch.float64)
    statistics = [token_statistics(logits.softmax(-1)[..., [1, 2]])]
    for term in attention_regularisation(statistics, 1.0, 1.0):
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True)
        assert (gradient[..., 1:3].abs().sum(dim=(0, 1, 2)) > 0).all()


def test_half_precision_maps_are_reduced_in_float32() -> None:
    """Squared differences of means near 1/77 are below float16's smallest number."""
    maps = torch.full((1, 2, 8, 2), 1 / 77, dtype=torch.float16)
    maps[..., 1] += 2e-4
    statistics = token_statistics(maps)
    assert statistics.mean.dtype == statistics.variance.dtype == torch.float32
    value, nothing = attention_regularisation([statistics], 1.0, 0.0)
    assert nothing == 0
    assert 0 < value.item() < torch.finfo(torch.float16).tiny


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_diffusion_loss_by_the_book(prediction_type: str) -> None:
    """eps, or v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans and Ho 2022), squared error, mean over everything."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(0)
    latents, noise, prediction = (torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    timesteps = torch.tensor([0, 500, 999])
    beta = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, 0)[timesteps].view(3, 1, 1, 1)
    target = noise if prediction_type == "epsilon" else alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    expected = ((prediction - target) ** 2).sum() / target.numel()
    actual = diffusion_loss(prediction, diffusion_target(scheduler, latents, noise, timesteps))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_and_weigh_each_sample(prediction_type: str) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    timesteps = torch.tensor([0, 10, 400, 999])
    snr = compute_snr(scheduler, timesteps)
    expected = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0) / (snr + (prediction_type == "v_prediction"))
    weights = min_snr_weights(scheduler, timesteps, 5.0)
    assert torch.allclose(weights, expected, rtol=1e-4)
    prediction, target = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    by_hand = sum(
        float(w) * float((p - t).square().mean()) for w, p, t in zip(weights, prediction, target, strict=True)
    )
    assert float(diffusion_loss(prediction, target, weights)) == pytest.approx(by_hand / 4, rel=1e-5)
    ones = torch.ones(4)
    assert float(diffusion_loss(prediction, target, ones)) == pytest.approx(float(diffusion_loss(prediction, target)))


def test_unknown_prediction_type_is_refused() -> None:
    scheduler = DDPMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="sample"):
        diffusion_target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_half_precision_prediction_is_compared_in_float32() -> None:
    prediction = torch.full((1, 4, 4, 4), 300.0, dtype=torch.float16)  # its square overflows float16
    assert diffusion_loss(prediction, torch.zeros(1, 4, 4, 4)).item() == pytest.approx(90_000.0)
