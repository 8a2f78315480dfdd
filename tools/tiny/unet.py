"""The U-Net: Stable Diffusion's own class and objective, on the latents of the autoencoder's first phase.

Noise is predicted (epsilon) under Stable Diffusion's schedule (`scaled_linear`, 1,000 steps; Rombach et al. 2022);
losses are weighted by min-SNR with gamma 5 (Hang et al. 2023); a tenth of the captions is empty, for classifier-free
guidance (Ho and Salimans 2022). The average of the weights is what is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

from tools.tiny.clip import WIDTH
from tools.tiny.processes import each_done
from tools.tiny.tokenizer import encode, load_tokenizer
from tools.tiny.training import Draw, Modules, Schedule, train
from tools.tiny.vae import CHANNELS, LATENT, moments, scaled

CHUNK = 4_000
EMPTY_CAPTIONS = 0.1
SNR_GAMMA = 5.0
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}
"""Stable Diffusion's."""

SCHEDULE = Schedule(
    steps=12_000, batch_size=64, learning_rate=1e-3, warm_up=300, cool_down=3_500, weight_decay=0.01,
    betas=(0.9, 0.99), ema_decay=0.9995, seed=21,
)  # fmt: skip


def build() -> dict[str, nn.Module]:
    """An untrained U-Net of 6.9 million parameters with nine cross-attention layers, at 16, 8 and 4 latent pixels."""
    unet = UNet2DConditionModel(
        sample_size=LATENT[1],
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    # At these sizes the fused kernel's backward pass costs more than writing the probabilities out.
    unet.set_attn_processor(AttnProcessor())
    return {"unet": unet}


def _encode_chunk(job: tuple[Path, int]) -> None:
    """Latents of one chunk of pictures, into its own file, unless that is there."""
    work, start = job
    file = work / "latents-chunks" / f"{start}.npy"
    if file.exists():
        return
    torch.set_num_threads(1)
    vae = _autoencoder(work)
    pictures = np.load(work / "pictures" / "train.npy", mmap_mode="r")[start : start + CHUNK]
    factor, parts = vae.config.scaling_factor, []
    for first in range(0, len(pictures), 100):
        with torch.inference_mode():
            mean, logvar = moments(vae, scaled(pictures[first : first + 100]))
        parts.append(torch.stack([mean, (logvar / 2).exp()]) * factor)
    with file.with_suffix(".part").open("wb") as part:
        np.save(part, torch.cat(parts, 1).numpy().astype(np.float16))
    file.with_suffix(".part").replace(file)


@lru_cache(maxsize=1)
def _autoencoder(work: Path) -> AutoencoderKL:
    """The first phase's autoencoder, in bfloat16."""
    return AutoencoderKL.from_pretrained(work / "vae" / "first", torch_dtype=torch.bfloat16).eval()


def encode_pictures(work: Path, processes: int, say: Callable[[str], None]) -> None:
    """Posterior means and deviations of every training picture, scaled, as float16 `[2, n, 8, 16, 16]`.

    Written to `work/latents.npy`; a second call continues, a third does nothing.
    """
    finished = work / "latents.npy"
    if finished.exists():
        return
    folder = work / "latents-chunks"
    folder.mkdir(exist_ok=True)
    count = len(np.load(work / "pictures" / "train.npy", mmap_mode="r"))
    starts = range(0, count, CHUNK)
    for done in each_done(_encode_chunk, [(work, start) for start in starts], processes):
        say(f"latents: {min(done * CHUNK, count):,} of {count:,} pictures")
    part = work / "latents-part.npy"
    latents = np.lib.format.open_memmap(part, "w+", np.float16, (2, count, *LATENT))
    for start in starts:
        latents[:, start : start + CHUNK] = np.load(folder / f"{start}.npy")
    latents.flush()
    part.replace(finished)
    shutil.rmtree(folder)


@lru_cache(maxsize=1)
def _data(work: Path) -> tuple[np.ndarray, np.ndarray, CLIPTextModel, Tensor, Tensor]:
    """Latents, caption tokens, the frozen text encoder, the empty caption's tokens, and the schedule's alpha-bars."""
    latents = np.load(work / "latents.npy", mmap_mode="r")
    tokens = np.load(work / "pictures" / "train-tokens.npy", mmap_mode="r")
    text_encoder = CLIPTextModel.from_pretrained(
        work / "text_encoder", torch_dtype=torch.bfloat16, attn_implementation="eager"
    )
    empty = torch.from_numpy(encode(load_tokenizer(work), [""]))
    alphas = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod
    return latents, tokens, text_encoder.eval().requires_grad_(False), empty, alphas


def loss(work: Path, modules: Modules, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
    """Weighted mean squared error of the predicted noise over the draw's pictures."""
    unet: Any = modules["unet"]
    latents, tokens, text_encoder, empty, alphas = _data(work)
    numbers = draw.indices(latents.shape[1]).numpy()
    variant = draw.integers(0, tokens.shape[1]).numpy()
    mean, deviation = (torch.from_numpy(latents[k, numbers].astype(np.float32)) for k in (0, 1))
    clean = mean + deviation * draw.normal(*LATENT)
    noise = draw.normal(*LATENT)
    timesteps = draw.integers(0, len(alphas))
    alpha = alphas[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    captions = empty.repeat(len(numbers), 1)
    captions[:, : tokens.shape[2]] = torch.from_numpy(tokens[numbers, variant].astype(np.int64))
    captions = torch.where(draw.uniform(1) < EMPTY_CAPTIONS, empty, captions)
    with torch.no_grad():
        hidden = text_encoder(input_ids=captions).last_hidden_state

    dtype = unet.dtype
    predicted = unet(noisy.to(dtype), timesteps, hidden.to(dtype)).sample.float()
    error = (predicted - noise).square().mean((1, 2, 3))
    snr = (alpha / (1 - alpha)).flatten()
    weighted = (error * snr.clamp(max=SNR_GAMMA) / snr).mean()
    return weighted, {"unweighted": error.mean().item()}


def train_unet(work: Path, processes: int = 2, minutes: float | None = None) -> bool:
    """Train, or continue; write `work/unet/model` when it is done and say whether it is."""
    modules = train(
        build, partial(loss, work), SCHEDULE, work / "unet" / "training", processes=processes, minutes=minutes
    )
    if modules is None:
        return False
    trained: Any = modules["unet"]
    trained.save_pretrained(work / "unet" / "model")
    return True
