"""Training pictures as latents: which picture, which augmentation, VAE posterior, noise and timestep of every sample.

Everything random is keyed by (seed, stage, step, index in the batch), see `rng`. A picture that comes up again, pixel
for pixel, as from augmentations that only flip or crop, is not encoded again; nor is a pool of augmentations, when
asked for, which all stages share. Posterior sample, noise and timestep are drawn at every step all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnbooth_cli.engine.augmentation import Augment, shorter_side
from attnbooth_cli.engine.losses import at_least_float32
from attnbooth_cli.engine.offload import at_hand
from attnbooth_cli.engine.rng import keyed_generator
from attnbooth_cli.project.pictures import load

REPEATS = 100
"""How often each picture stands in one shuffled epoch (reference script)."""
SUPERSAMPLING = 4
"""Pictures larger than this many times the resolution are reduced to it once, which bounds time and memory a draw."""

REMEMBERED = 256
"""Encoded pictures that are kept, the most recently used: at 512 pixels 128 KiB each."""

AHEAD = 4
"""Threads that augment the next step's pictures while a GPU computes this one. A step of Stable Diffusion takes a fast
GPU about as long as one thread needs to turn and resize eight photos of 12 megapixels (docs/performance.md)."""

Key = tuple[int | str, ...]
Posterior = tuple[Tensor, Tensor]
"""Mean and standard deviation, each [c, h, w] float32."""


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


@dataclass(frozen=True)
class Draw:
    """One augmented picture: its number and the key of its augmentation's randomness."""

    picture: int
    key: Key


@dataclass
class LatentSource:
    """Draws batches.

    Attributes:
        pictures: Upright RGB pictures, see `load_pictures`.
        pool: Number of augmentations that are encoded once and drawn from, 0 for a fresh one every time.
        device: Where the VAE encodes, wherever it waits; None for where it is.
        ahead: Who augments what `look_ahead` announces, see `beside`; its threads end with the source. None for nobody.
    """

    pictures: Sequence[Image.Image]
    vae: Any
    seed: int
    resolution: int
    train_timesteps: int
    augment: Augment
    pool: int = 0
    device: torch.device | None = None
    ahead: Executor | None = None
    _encoded: dict[Hashable, Posterior] = field(default_factory=dict)
    _coming: dict[Draw, Future[tuple[Tensor, Hashable]]] = field(default_factory=dict)

    def batch(self, stage: str, step: int, indices: Sequence[int], batch_size: int) -> Batch:
        """The samples `indices` of the batch of `batch_size` at `step` (counted from 0) of `stage`."""
        keys = [(self.seed, stage, step, index) for index in indices]
        latents = self._sampled([self._draw(stage, step, index, batch_size) for index in indices], keys)
        timesteps = [torch.randint(self.train_timesteps, (1,), generator=keyed_generator(*k, "timestep")) for k in keys]
        return Batch(latents, _normal(keys, "noise", latents), torch.cat(timesteps).to(latents.device))

    def look_ahead(self, stage: str, step: int, indices: Sequence[int], batch_size: int) -> None:
        """Has the pictures of a later `batch` augmented meanwhile, to the same bits; nothing where nobody does that."""
        if self.ahead is None:
            return
        for index in indices:
            draw = self._draw(stage, step, index, batch_size)
            if draw not in self._coming and draw not in self._encoded:
                self._coming[draw] = self.ahead.submit(self._augmented, draw)

    @property
    def complete(self) -> bool:
        """Whether all that can be drawn from the pool is encoded, so that training needs the VAE no more."""
        full = 0 < self.pool <= len(self._encoded)
        return full and all(self._entry(entry) in self._encoded for entry in range(self.pool))

    def others(self, stage: str, step: int, indices: Sequence[int], batch_size: int) -> Tensor:
        """Latents [m, c, h, w] of another picture than each sample's own, or of the same if there is only one."""
        draws = []
        for index in indices:
            own, key = self._draw(stage, step, index, batch_size).picture, (self.seed, stage, step, index, "other")
            further = torch.randint(max(len(self.pictures) - 1, 1), (1,), generator=keyed_generator(*key))
            draws.append(Draw((own + 1 + int(further)) % len(self.pictures), (*key, "augmentation")))
        return self._sampled(draws, [(self.seed, stage, step, index, "other") for index in indices])

    def first(self) -> Tensor:
        """Latents [1, c, h, w] of the first picture: the mean of the posterior."""
        ((mean, _),) = self._posteriors([Draw(0, (self.seed, "first"))])
        latents: Tensor = mean.unsqueeze(0) * self.vae.config.scaling_factor
        return latents

    def prompt_number(self, stage: str, step: int, index: int, prompts: int) -> int:
        """Which of several training prompts a sample has, uniformly."""
        return int(torch.randint(prompts, (1,), generator=keyed_generator(self.seed, stage, step, index, "prompt")))

    def _sampled(self, draws: Sequence[Draw], keys: Sequence[Key]) -> Tensor:
        """Scaled samples of the draws' posteriors, [m, c, h, w]."""
        mean, std = (torch.stack(moments) for moments in zip(*self._posteriors(draws), strict=True))
        latents: Tensor = (mean + std * _normal(keys, "posterior", mean)) * self.vae.config.scaling_factor
        return latents

    def _draw(self, stage: str, step: int, index: int, batch_size: int) -> Draw:
        number = step * batch_size + index
        if self.pool:
            epoch, place = divmod(number, self.pool)
            entry = int(_permutation(self.seed, stage, epoch, self.pool)[place])
            return self._entry(entry)
        picture = picture_number(self.seed, stage, number, len(self.pictures))
        return Draw(picture, (self.seed, stage, step, index, "augmentation"))

    def _entry(self, entry: int) -> Draw:
        return Draw(entry % len(self.pictures), (self.seed, "pool", entry))

    def _posteriors(self, draws: Sequence[Draw]) -> list[Posterior]:
        """One of every draw."""
        return [self._posterior(draw) for draw in draws]

    def _posterior(self, draw: Draw) -> Posterior:
        """Encoded alone, so that its bits depend neither on the batch nor on where a run was resumed."""
        if self.pool and draw in self._encoded:
            return self._encoded[draw]
        coming = self._coming.pop(draw, None)
        pixels, key = coming.result() if coming else self._augmented(draw)
        posterior = self._encoded.pop(key, None)  # and back again below, as the latest
        if posterior is None:
            with at_hand(self.device, self.vae) if self.device else nullcontext():
                mean, std = encode(self.vae, pixels.unsqueeze(0))
            posterior = mean[0], std[0]
        self._encoded[key] = posterior
        if len(self._encoded) > max(self.pool, REMEMBERED):
            del self._encoded[next(iter(self._encoded))]
        return posterior

    def _augmented(self, draw: Draw) -> tuple[Tensor, Hashable]:
        """Pixels [3, H, W] float32 in [-1, 1], and under what they are remembered when they are encoded."""
        picture = self.augment(self.pictures[draw.picture], self.resolution, keyed_generator(*draw.key))
        return to_tensor(picture), draw if self.pool else hashlib.sha256(picture.tobytes()).digest()


def beside(device: torch.device) -> Executor | None:
    """Threads for `look_ahead` where the steps leave the CPU to them; on a CPU both would want the same cores."""
    return None if device.type == "cpu" else ThreadPoolExecutor(AHEAD, "pictures")


def load_pictures(paths: Sequence[Path], resolution: int) -> tuple[Image.Image, ...]:
    """Decodes the training pictures once, reduced to at most `SUPERSAMPLING` times the resolution."""
    return tuple(_reduced(load(path), SUPERSAMPLING * resolution) for path in paths)


def picture_number(seed: int, stage: str, draw: int, pictures: int) -> int:
    """Which picture the `draw`-th sample of a stage shows: every picture `REPEATS` times an epoch, in a keyed order."""
    epoch, place = divmod(draw, REPEATS * pictures)
    return int(_permutation(seed, stage, epoch, REPEATS * pictures)[place]) % pictures


@torch.no_grad()
def encode(vae: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """The VAE posterior's mean and standard deviation, each [m, c, h, w] float32, of pixels [m, 3, H, W] in [-1, 1]."""
    parameter = next(vae.parameters())
    posterior = vae.encode(pixel_values.to(parameter)).latent_dist
    return at_least_float32(posterior.mean), at_least_float32(posterior.std)


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as [3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


@lru_cache(maxsize=8)
def _permutation(seed: int, stage: str, epoch: int, length: int) -> Tensor:
    return torch.randperm(length, generator=keyed_generator(seed, stage, "order", epoch))


def _normal(keys: Sequence[Key], purpose: str, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of `like` [m, c, h, w], one keyed generator a sample.

    They are drawn in float32 on the CPU, so that every device and dtype sees the same ones.
    """
    rows = [torch.randn(like.shape[1:], generator=keyed_generator(*key, purpose)) for key in keys]
    return torch.stack(rows).to(like)


def _reduced(picture: Image.Image, length: int) -> Image.Image:
    return shorter_side(picture, length) if min(picture.size) > length else picture
