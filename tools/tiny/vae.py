"""The autoencoder of the tiny pipeline: pictures [3, 64, 64] from -1 to 1, latents [8, 16, 16] of about unit scale.

It trains in two phases: all of it with a loss that also keeps the latents easy for a diffusion model, then the decoder
alone, for the sharpest pictures those latents allow. Quality is measured in PSNR, hence the weight of squared errors.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tools.tiny.canvas import grid
from tools.tiny.training import Draw, Modules, Schedule, train

CHANNELS = 8
LATENT = (CHANNELS, 16, 16)
THUMBNAIL_SCALE = 1.5
"""Brings the thumbnails, whose standard deviation is well under one, closer to the unit scale of the latents."""
DISTURBANCE = 0.25
"""The most noise, in standard deviations of the latents, that the decoder learns to see through."""
SHEET_COLUMNS, SHEET_ROWS = 12, 2


def build() -> dict[str, nn.Module]:
    """An untrained autoencoder of about 0.93 million parameters, which makes latents of a quarter of the size."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )
    return {"vae": vae}


def build_decoder(first: Path) -> dict[str, nn.Module]:
    """The autoencoder that the first phase left in the folder `first`, with only the decoder free to train."""
    vae = AutoencoderKL.from_pretrained(first)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return {"vae": vae}


@functools.cache
def opened(path: Path) -> np.ndarray:
    """The pictures of a set, read as they are needed: uint8 [N, 64, 64, 3]."""
    pictures: np.ndarray = np.load(path, mmap_mode="r")
    return pictures


def scaled(pictures: np.ndarray) -> Tensor:
    """Pictures as the autoencoder takes them: uint8 [B, H, W, 3] -> float32 [B, 3, H, W] from -1 to 1."""
    return torch.tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def drawn_pictures(path: Path, draw: Draw) -> Tensor:
    """Random pictures of a set, half of them mirrored: float32 [B, 3, 64, 64].

    Not channels last: in that format the bf16 group norms of a CPU take a quarter of a step.
    """
    pictures = scaled(opened(path)[draw.indices(len(opened(path))).numpy()])
    mirrored = draw.uniform(1, 1, 1) < 0.5
    return torch.where(mirrored, pictures.flip(3), pictures)


def edges_error(error: Tensor) -> Tensor:
    """Mean absolute finite differences of an error, horizontal and vertical: blurred edges cost here."""
    return error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()


def moments(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior's means and log variances, in float32 whatever the autoencoder works in: [B, 8, 16, 16] each."""
    posterior = vae.encode(pictures.to(vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.logvar.float()


def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures of unscaled latents: float32 [B, 3, 64, 64]."""
    pictures: Tensor = vae.decode(latents.to(vae.dtype)).sample.float()
    return pictures


def whole_loss(modules: Modules, draw: Draw, progress: float, *, pictures: Path) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction from sampled latents, their divergence from the normal distribution, and a thumbnail in them.

    The thumbnail ties three channels of the means to the picture's colours at a quarter of its size, which gives the
    U-Net latents with the layout of pictures. It leads at first and keeps a small say to the end.
    """
    vae = modules["vae"]
    x = drawn_pictures(pictures, draw)
    mean, logvar = moments(vae, x)
    error = decoded(vae, mean + (logvar / 2).exp() * draw.normal(*LATENT)) - x
    absolute, squared = error.abs().mean(), error.square().mean()
    divergence = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    thumbnail = F.mse_loss(mean[:, :3], THUMBNAIL_SCALE * F.avg_pool2d(x, 4))
    loss = absolute + squared + 0.25 * edges_error(error) + 2e-4 * divergence
    loss = loss + max(0.05, 1 - progress / 0.4) * thumbnail
    figures = {"absolute": absolute, "squared": squared, "divergence": divergence, "thumbnail": thumbnail}
    return loss, {name: value.item() for name, value in figures.items()}


def decoder_loss(modules: Modules, draw: Draw, progress: float, *, pictures: Path) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction alone: half of it from the means, half from latents as far off as a denoiser's may be."""
    vae = modules["vae"]
    x = drawn_pictures(pictures, draw)
    with torch.no_grad():
        mean, _ = moments(vae, x)
        disturbed = (draw.uniform(1, 1, 1) < 0.5) * draw.uniform(1, 1, 1) * DISTURBANCE
        latents = mean + disturbed * draw.normal(*LATENT)
    error = decoded(vae, latents) - x
    absolute, squared = error.abs().mean(), error.square().mean()
    return absolute + 2 * squared, {"absolute": absolute.item(), "squared": squared.item()}


WHOLE_SCHEDULE = Schedule(steps=6000, batch_size=16, learning_rate=1.5e-3, cool_down=2000, weight_decay=1e-3)
DECODER_SCHEDULE = Schedule(steps=4000, batch_size=16, learning_rate=5e-4, cool_down=2000, weight_decay=1e-3, seed=1)


def train_whole(work: Path, processes: int = 1, minutes: float | None = None) -> bool:
    """The first phase; writes `vae/first`, whose encoder is final, when it is done and says whether it is."""
    folder, pictures = work / "vae", work / "pictures" / "train.npy"
    loss = functools.partial(whole_loss, pictures=pictures)
    modules = train(build, loss, WHOLE_SCHEDULE, folder / "whole", processes=processes, minutes=minutes)
    if modules is not None:
        validation = opened(work / "pictures" / "validation.npy")
        vae: Any = modules["vae"]
        measured = measure(vae, validation)
        standardise(vae, torch.tensor(measured.channel_means), torch.tensor(measured.channel_deviations))
        export(vae, validation, folder / "first")
    return modules is not None


def train_decoder(work: Path, processes: int = 1, minutes: float | None = None) -> bool:
    """The second phase; writes `vae/model` when it is done and says whether it is."""
    folder, pictures = work / "vae", work / "pictures" / "train.npy"
    # A longer first phase leaves another encoder, to which the decoder of a shorter one does not belong.
    phase = folder / f"decoder-after-{WHOLE_SCHEDULE.steps}"
    modules = train(
        functools.partial(build_decoder, folder / "first"),
        functools.partial(decoder_loss, pictures=pictures),
        DECODER_SCHEDULE,
        phase,
        processes=processes,
        minutes=minutes,
    )
    if modules is not None:
        trained: Any = modules["vae"]
        export(trained, opened(work / "pictures" / "validation.npy"), folder / "model")
    return modules is not None


@torch.no_grad()
def standardise(vae: AutoencoderKL, means: Tensor, deviations: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1, given what they are, `[8]` each; pictures stay the same.

    Channels of unequal spread drown in unequal noise when a diffusion model learns them. The change is folded into the
    1 x 1 convolutions on either side of the latents: z' = (z - m) / s, so log variances lose 2 log s.
    """
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:CHANNELS] /= deviations[:, None, None, None]
    into.bias[:CHANNELS] = (into.bias[:CHANNELS] - means) / deviations
    into.bias[CHANNELS:] -= 2 * deviations.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ means
    out_of.weight *= deviations[None, :, None, None]


def export(vae: AutoencoderKL, pictures: np.ndarray, folder: Path) -> None:
    """Save a trained autoencoder with its scaling factor, what it measures on validation pictures, and a sheet."""
    vae.eval()
    measured = measure(vae, pictures)
    vae.register_to_config(scaling_factor=measured.scaling_factor)
    vae.save_pretrained(folder)
    folder.with_suffix(".json").write_text(json.dumps(asdict(measured), indent=2) + "\n")
    sheet(vae, pictures).save(folder.with_suffix(".png"))


@dataclass(frozen=True)
class Measured:
    """What an autoencoder makes of validation pictures; PSNR in decibels, of the means' pictures cut to -1 to 1."""

    pictures: int
    mean_psnr: float
    """Mean of the pictures' PSNRs."""
    psnr_of_mean: float
    """PSNR of the mean squared error of all pictures."""
    sampled_psnr: float
    """Like `mean_psnr`, of pictures decoded from posterior samples."""
    scaling_factor: float
    """One over the standard deviation of posterior samples, all channels together."""
    channel_means: list[float]
    channel_deviations: list[float]


def psnr(squared_error: Tensor) -> Tensor:
    """Decibels of mean squared errors between pictures whose values span 2; exact pictures count as 100 dB."""
    return 10 * torch.log10(4 / squared_error.clamp(min=4e-10))


@torch.no_grad()
def measure(vae: AutoencoderKL, pictures: np.ndarray) -> Measured:
    """Measure a float32 autoencoder on all pictures, uint8 [N, 64, 64, 3]."""
    generator = torch.Generator().manual_seed(0)
    latents, from_means, from_samples = [], [], []
    for x in _batches(pictures):
        mean, logvar = moments(vae, x)
        sample = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator)
        latents.append(sample)
        from_means.append(_squared_errors(decoded(vae, mean), x))
        from_samples.append(_squared_errors(decoded(vae, sample), x))
    samples, errors = torch.cat(latents), torch.cat(from_means)
    return Measured(
        pictures=len(samples),
        mean_psnr=psnr(errors).mean().item(),
        psnr_of_mean=psnr(errors.mean()).item(),
        sampled_psnr=psnr(torch.cat(from_samples)).mean().item(),
        scaling_factor=1 / samples.std().item(),
        channel_means=samples.mean((0, 2, 3)).tolist(),
        channel_deviations=samples.std((0, 2, 3)).tolist(),
    )


def _squared_errors(pictures: Tensor, originals: Tensor) -> Tensor:
    """Mean squared error of each picture: [B]."""
    return (pictures.clamp(-1, 1) - originals).square().mean((1, 2, 3))


def _batches(pictures: np.ndarray, size: int = 64) -> Iterator[Tensor]:
    for start in range(0, len(pictures), size):
        yield scaled(np.array(pictures[start : start + size]))


@torch.no_grad()
def sheet(vae: AutoencoderKL, pictures: np.ndarray) -> Image.Image:
    """Twenty-four pictures spread over a set, each row of originals above the row of its reconstructions."""
    count = SHEET_COLUMNS * SHEET_ROWS
    originals = np.array(pictures[np.linspace(0, len(pictures) - 1, count).astype(int)])
    made = decoded(vae, moments(vae, scaled(originals))[0]).clamp(-1, 1)
    made_pictures = ((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    columns = SHEET_COLUMNS
    pairs = [(originals[k : k + columns], made_pictures[k : k + columns]) for k in range(0, count, columns)]
    return grid([picture for rows in pairs for row in rows for picture in row], columns, enlarged=1)
