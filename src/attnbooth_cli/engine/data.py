"""Training pictures as latents: augmentation (METHOD "Training pictures"), VAE posterior, noise and timestep.

Everything random is keyed by (seed, stage, step, index in the batch), see `rng`. A pool of augmentations, when asked
for, is encoded once and shared by all stages; posterior sample, noise and timestep are still drawn at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnbooth_cli.engine.rng import keyed_generator
from attnbooth_cli.project.pictures import load

ROTATION_PROBABILITY = 0.75  # reference script
ROTATION_DEGREES = 45.0
FLIP_PROBABILITY = 0.25
REPEATS = 100
"""How often each picture stands in one shuffled epoch (reference script)."""
SUPERSAMPLING = 4
"""Pictures larger than this many times the resolution are reduced to it once, which bounds time and memory a draw."""

Augment = Callable[[Image.Image, int, torch.Generator], Image.Image]


@dataclass(frozen=True)
class Batch:
    """What a (micro-)batch of m samples puts into the U-Net.

    Attributes:
        latents: [m, c, h, w] float32, sampled from the VAE posterior and scaled.
        noise: [m, c, h, w] float32, standard normal.
        timesteps: [m] int64, uniform over the training schedule.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor


@dataclass
class LatentSource:
    """Draws batches. Read `batch`; the rest is state that makes it cheap.

    Attributes:
        pictures: Upright RGB pictures, at most `SUPERSAMPLING` times the resolution.
        pool: Number of augmentations encoded once, 0 for a fresh one at every draw.
    """

    pictures: Sequence[Image.Image]
    vae: Any
    seed: int
    resolution: int
    train_timesteps: int
    augment: Augment
    pool: int = 0
    _posteriors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def batch(self, stage: str, step: int, indices: Sequence[int], batch_size: int) -> Batch:
        """The samples `indices` of the batch of `batch_size` at `step` (counted from 0) of `stage`."""
        moments = [self._posterior(stage, step, index, batch_size) for index in indices]
        missing = [i for i, moment in enumerate(moments) if isinstance(moment, Image.Image)]
        if missing:
            mean, std = encode(self.vae, torch.stack([to_tensor(moments[i]) for i in missing]))
            for row, i in enumerate(missing):
                moments[i] = (mean[row], std[row])
                if self.pool:
                    self._posteriors[self._entry(stage, step, indices[i], batch_size)] = moments[i]
        mean = torch.stack([moment[0] for moment in moments])  # [m, c, h, w]
        std = torch.stack([moment[1] for moment in moments])
        shape = mean.shape[1:]
        keys = [(self.seed, stage, step, index) for index in indices]
        posterior_noise = torch.stack([torch.randn(shape, generator=keyed_generator(*k, "posterior")) for k in keys])
        noise = torch.stack([torch.randn(shape, generator=keyed_generator(*k, "noise")) for k in keys])
        timesteps = torch.cat(
            [torch.randint(self.train_timesteps, (1,), generator=keyed_generator(*k, "timestep")) for k in keys]
        )
        latents = (mean + std * posterior_noise.to(mean)) * self.vae.config.scaling_factor
        return Batch(latents=latents, noise=noise.to(mean), timesteps=timesteps.to(mean.device))

    def _posterior(self, stage: str, step: int, index: int, batch_size: int) -> Any:
        """A cached posterior, or the augmented picture that is still to be encoded."""
        draw = step * batch_size + index
        if self.pool:
            entry = self._entry(stage, step, index, batch_size)
            if entry in self._posteriors:
                return self._posteriors[entry]
            picture, key = self.pictures[entry % len(self.pictures)], keyed_generator(self.seed, "pool", entry)
        else:
            picture = self.pictures[picture_number(self.seed, stage, draw, len(self.pictures))]
            key = keyed_generator(self.seed, stage, step, index, "augmentation")
        return self.augment(picture, self.resolution, key)

    def _entry(self, stage: str, step: int, index: int, batch_size: int) -> int:
        """Which augmentation of the pool a draw takes."""
        draw = step * batch_size + index
        return int(_permutation(self.seed, stage, draw // self.pool, self.pool)[draw % self.pool])


def load_pictures(paths: Sequence[Path], resolution: int) -> tuple[Image.Image, ...]:
    """Decodes the training pictures once, reduced to at most `SUPERSAMPLING` times the resolution."""
    return tuple(_reduced(load(path), SUPERSAMPLING * resolution) for path in paths)


def picture_number(seed: int, stage: str, draw: int, pictures: int) -> int:
    """Which picture the `draw`-th sample of a stage shows: every picture `REPEATS` times an epoch, in a keyed order."""
    epoch, place = divmod(draw, REPEATS * pictures)
    return int(_permutation(seed, stage, epoch, REPEATS * pictures)[place]) % pictures


@lru_cache(maxsize=8)
def _permutation(seed: int, stage: str, epoch: int, length: int) -> Tensor:
    return torch.randperm(length, generator=keyed_generator(seed, stage, "order", epoch))


@torch.no_grad()
def encode(vae: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """The VAE posterior's mean and standard deviation, each [m, c, h, w] float32, of pixels [m, 3, H, W] in [-1, 1]."""
    parameter = next(vae.parameters())
    posterior = vae.encode(pixel_values.to(parameter)).latent_dist
    return posterior.mean.float(), posterior.std.float()


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as [3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


def published(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """The reference's recipe: rotate (black corners), resize the shorter side, flip, random square crop."""
    rotate, angle, flip, *crop = torch.rand(5, generator=generator).tolist()
    if rotate < ROTATION_PROBABILITY:
        degrees = (2 * angle - 1) * ROTATION_DEGREES
        picture = picture.rotate(degrees, resample=Image.Resampling.NEAREST, expand=True)
    return _flip_and_crop(picture, resolution, flip, crop)


def upright(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """`published` without the rotation, hence without black corners."""
    flip, *crop = torch.rand(3, generator=generator).tolist()
    return _flip_and_crop(picture, resolution, flip, crop)


def unaugmented(picture: Image.Image, resolution: int, generator: torch.Generator) -> Image.Image:
    """The centre square and nothing random."""
    return _flip_and_crop(picture, resolution, 1.0, (0.5, 0.5))


AUGMENTATIONS: dict[str, Augment] = {"published": published, "upright": upright, "none": unaugmented}


def _flip_and_crop(picture: Image.Image, resolution: int, flip: float, crop: Sequence[float]) -> Image.Image:
    """Resize the shorter side to `resolution`, flip if the uniform draw says so, crop at two uniform draws."""
    picture = _shorter_side(picture, resolution)
    if flip < FLIP_PROBABILITY:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = (
        min(int(draw * (side - resolution + 1)), side - resolution)
        for draw, side in zip(crop, picture.size, strict=True)
    )
    return picture.crop((left, top, left + resolution, top + resolution))


def _shorter_side(picture: Image.Image, length: int) -> Image.Image:
    scale = length / min(picture.size)
    width, height = (max(length, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), resample=Image.Resampling.BILINEAR)


def _reduced(picture: Image.Image, length: int) -> Image.Image:
    return _shorter_side(picture, length) if min(picture.size) > length else picture
