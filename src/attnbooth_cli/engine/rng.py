"""Keyed randomness: every random number of a step is a function of (seed, stage, step, index, purpose).

Nothing is streamed, so a resumed run, a batch split by accumulation and a batch split over processes all see the same
pictures, augmentations, posterior samples, noise and timesteps. Generators live on the CPU whatever the device, so that
devices agree too.
"""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the first 63 bits of SHA-256 over the key's parts.

    Python's own `hash` is salted per process and torch's seeds mix poorly when consecutive, hence a digest.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
