"""A judge's features of picture files, kept beside them, so that scoring again computes nothing.

eval/features/<judge>.safetensors      {SHA-256 of a picture file, and what was done to it before: [d]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from attnbooth_cli import __version__
from attnbooth_cli.engine.alterations import ALTERATIONS
from attnbooth_cli.engine.judges import PictureJudge
from attnbooth_cli.engine.weights import read_tensors
from attnbooth_cli.errors import BoothError, DamagedError
from attnbooth_cli.project import durable, pictures

AT_ONCE = 256
"""Pictures that are in memory together, after which features are written."""


def features(
    folder: Path, judge: PictureJudge, paths: Sequence[Path], alteration: str | None = None, *, training: bool = False
) -> Tensor:
    """The judge's features of picture files, [n, d] float32; those not known yet are computed and kept.

    Args:
        alteration: One of `ALTERATIONS`, applied to each picture.
        training: They are pictures of the concept, not generated ones, see `PictureJudge`.

    A damaged cache is made anew: nothing in it is more than a saving of time.

    Raises:
        InputError, DamagedError: a picture cannot be read.
        ResourceError: the cache cannot be written.
    """
    altered = ALTERATIONS[alteration] if alteration else lambda picture: picture
    prepared = judge.training if training else lambda picture: picture
    done = "".join(f" {name}" for name in (alteration, "training" if training else None) if name)
    try:
        keys = [durable.sha256(path) + done for path in paths]
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} vanished while it was evaluated", "run eval again") from None
    place = folder / f"{_name(judge)}.safetensors"
    known = _read(place, judge.width)
    missing = list({key: path for key, path in zip(keys, paths, strict=True) if key not in known}.items())
    for start in range(0, len(missing), AT_ONCE):
        part = dict(missing[start : start + AT_ONCE])
        rows = judge.features([prepared(altered(pictures.load(path))) for path in part.values()])
        if not torch.isfinite(rows).all():
            raise DamagedError(f"the judge {judge.identity['ref']} gives features that are not finite", None)
        known |= {key: row.clone() for key, row in zip(part, rows, strict=True)}
        durable.write_bytes(place, save(known, {"format": "pt"}))
    return torch.stack([known[key] for key in keys])


def _name(judge: PictureJudge) -> str:
    """By everything that decides a feature but the picture: the judge, the libraries that ran it, and attnbooth."""
    how = {"attnbooth": __version__, **{name: version(name) for name in ("transformers", "pillow")}}
    return hashlib.sha256(json.dumps([judge.identity, how], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(place: Path, width: int) -> dict[str, Tensor]:
    if not place.exists():
        return {}
    try:
        known = read_tensors(place)
    except BoothError:
        return {}
    return {key: row for key, row in known.items() if row.shape == (width,) and torch.isfinite(row).all()}
