"""The objective: diffusion loss plus attention regularisation (paper section 4.3).

Letters in shapes: l layers, b samples, h heads, p query positions, t prompt tokens, v [V] tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TokenStatistics:
    """What one cross-attention layer's maps say about a few prompt tokens.

    Attributes:
        mean: [b, t] float32, the mean attention probability over heads and positions jointly.
        variance: [b, t] float32, the unbiased variance over heads and positions jointly.
    """

    mean: Tensor
    variance: Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions as float32; float32 and float64 as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def token_statistics(probabilities: Tensor) -> TokenStatistics:
    """Reduces attention probabilities over heads and positions jointly.

    Args:
        probabilities: [b, h, p, t] softmax probabilities of the tokens of interest, any float dtype.
    """
    values = at_least_float32(probabilities).flatten(1, 2)  # [b, h*p, t]
    variance, mean = torch.var_mean(values, dim=1)
    return TokenStatistics(mean=mean, variance=variance)


def diffusion_target(noise_scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The U-Net's target by the scheduler's `prediction_type`, of the same shape as `latents`.

    Raises:
        ValueError: a prediction type other than epsilon and v_prediction.
    """
    match noise_scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            target: Tensor = noise_scheduler.get_velocity(latents, noise, timesteps)
            return target
        case other:
            raise ValueError(f"unsupported prediction type {other!r}")


def diffusion_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error over everything, in float32; with `weights` [b], each sample's times its own. A scalar."""
    if weights is None:
        return F.mse_loss(at_least_float32(prediction), at_least_float32(target), reduction="mean")
    errors = (at_least_float32(prediction) - at_least_float32(target)).square().flatten(1).mean(dim=1)  # [b]
    return (weights * errors).mean()


def min_snr_weights(noise_scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """min(snr, gamma) / snr, for v-prediction min(snr, gamma) / (snr + 1), as [b] (Hang et al. 2023, Min-SNR)."""
    cumulative = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = cumulative / (1 - cumulative)
    v_prediction = noise_scheduler.config.prediction_type == "v_prediction"
    weights: Tensor = snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)
    return weights


def attention_regularisation(
    statistics: Sequence[TokenStatistics], mean_weight: float, variance_weight: float
) -> tuple[Tensor, Tensor]:
    """R = 1/L sum_l sum_b mean_v [ lambda_mu (mu_v - mu_c)^2 + lambda_sigma (s2_v - s2_c)^2 ], as its two terms.

    The sum over the batch is not divided by its size (the reference's behaviour), and neither side is detached.

    Args:
        statistics: One entry a layer; the last token column is the category's first token c, the others are [V].
        mean_weight: lambda_mu.
        variance_weight: lambda_sigma.

    Returns:
        The term of the means and that of the variances, each with its weight: scalars, float32. R is their sum.
    """
    mean = torch.stack([layer.mean for layer in statistics])  # [l, b, v + 1]
    variance = torch.stack([layer.variance for layer in statistics])  # [l, b, v + 1]
    mean_gap = (mean[..., :-1] - mean[..., -1:]).square()
    variance_gap = (variance[..., :-1] - variance[..., -1:]).square()
    of_means, of_variances = (
        (weight * gap).mean(dim=-1).sum(dim=1).mean()
        for weight, gap in ((mean_weight, mean_gap), (variance_weight, variance_gap))
    )
    return of_means, of_variances
