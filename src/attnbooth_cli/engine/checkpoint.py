"""Resumable states: a folder of safetensors whose last file lists the hashes of the others.

A checkpoint exists when that last file exists and everything it lists matches; anything else is skipped, said, and the
one before it is used.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnbooth_cli.engine.methods import STAGE_NAMES, StageName
from attnbooth_cli.engine.weights import read_tensors, write_tensors
from attnbooth_cli.errors import DamagedError
from attnbooth_cli.project import durable
from attnbooth_cli.project.documents import read_document
from attnbooth_cli.project.schema import present, up_to_date

MARKER = "checkpoint.json"
KEPT = 2
"""Resumable checkpoints kept per run; older ones go after the newest is durable."""


@dataclass(frozen=True)
class Checkpoint:
    """A state after `step` steps of `stage`.

    Attributes:
        folder: Where it is.
        scaler: State of the fp16 gradient scaler, if there is one.
    """

    folder: Path
    stage: StageName
    step: int
    scaler: dict[str, Any] | None = None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part: `weights` or `optimizer`."""
        return read_tensors(self.folder / f"{name}.safetensors")


def load_into(parameters: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Copies a checkpoint's weights into parameters.

    Raises:
        DamagedError: one is missing or of another shape, as in a checkpoint that somebody else made up.
    """
    weights = checkpoint.tensors("weights")
    for name, parameter in parameters.items():
        if name not in weights or weights[name].shape != parameter.shape:
            raise misfit(checkpoint.folder / "weights.safetensors", name)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def misfit(path: Path, name: str) -> DamagedError:
    """The failure to use a file whose hash is right and whose contents are not."""
    return DamagedError(f"{path} does not fit the run's plan ({name})", "begin again with: attnbooth train --restart")


def save(
    folder: Path,
    stage: StageName,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    scaler: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Writes a checkpoint durably; it appears whole or not at all.

    Args:
        parts: Part name to tensors.

    Raises:
        ResourceError: it cannot be written; nothing remains of it.
    """
    state = dict(scaler) if scaler else None
    with durable.new_directory(folder) as temporary:
        for name, tensors in parts.items():
            write_tensors(temporary / f"{name}.safetensors", tensors)
        document = {
            "schema": present("checkpoint"),
            "stage": stage,
            "step": step,
            "scaler": state,
            "files": {f"{name}.safetensors": durable.sha256(temporary / f"{name}.safetensors") for name in parts},
        }
        durable.write_json(temporary / MARKER, document)
    return Checkpoint(folder, stage, step, state)


def read(folder: Path) -> Checkpoint:
    """Opens a checkpoint and checks every file against its hash.

    Raises:
        DamagedError: not whole.
        InputError: a newer version wrote it.
    """
    try:
        document = up_to_date("checkpoint", read_document(folder / MARKER), folder / MARKER)
        if not isinstance(document["scaler"], dict | None):
            raise ValueError("its scaler's state is none")
        for name, expected in document["files"].items():
            if Path(name).name != name or durable.sha256(folder / name) != expected:
                raise DamagedError(f"{folder / name} does not match its recorded hash")
        if document["stage"] not in STAGE_NAMES:
            raise ValueError(document["stage"])
        if type(document["step"]) is not int or document["step"] < 0:
            raise ValueError("its step is no number of steps")
        return Checkpoint(folder, document["stage"], document["step"], document["scaler"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"the checkpoint {folder} is not whole ({error})") from error


def newest(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest whole checkpoint under `folder`, and a sentence for each newer one that had to be skipped.

    Raises:
        InputError: a newer version wrote one, which training on from here would delete.
    """
    skipped: list[str] = []
    for path in sorted(_checkpoints(folder), key=_order, reverse=True):
        try:
            return read(path), tuple(skipped)
        except DamagedError as error:
            skipped.append(f"skipped: {error.message}")
    return None, tuple(skipped)


def prune(folder: Path, newest: Path, keep: int = KEPT) -> None:
    """Deletes all checkpoints under `folder` but the `keep` that end with `newest`.

    Later ones than `newest` are damaged, or belong to steps that are being done again.
    """
    paths = sorted(_checkpoints(folder), key=_order)
    kept = [path for path in paths if _order(path) <= _order(newest)][-keep:]
    for path in paths:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def drop(folder: Path, stages: Collection[StageName]) -> None:
    """Deletes the checkpoints of stages that are finished, and the folder once it is empty."""
    for path in _checkpoints(folder):
        if path.name.partition("-")[0] in stages:
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def checkpoint_name(stage: StageName, step: int) -> str:
    """A name that sorts by step within its stage."""
    return f"{stage}-{step:06d}"


def _checkpoints(folder: Path) -> list[Path]:
    names = rf"({'|'.join(STAGE_NAMES)})-\d+"
    return [path for path in folder.iterdir() if re.fullmatch(names, path.name)] if folder.is_dir() else []


def _order(path: Path) -> tuple[int, int]:
    stage, _, step = path.name.partition("-")
    return [str(name) for name in STAGE_NAMES].index(stage), int(step)
