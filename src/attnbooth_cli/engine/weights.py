"""Tensors to and from safetensors files, never pickles."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attnbooth_cli.errors import DamagedError

_UMASK_IS_READ = threading.Lock()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors (moved to the CPU) to `path`. Not durable by itself: use inside `durable.new_directory`.

    Raises:
        OSError: with the operating system's own number, which safetensors hides in its message.
    """
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            path,
            metadata={"format": "pt"},
        )
        path.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def _umask() -> int:
    """What new files are not allowed; the system tells it only while it is changed, which two threads must not do."""
    with _UMASK_IS_READ:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a file onto the CPU.

    Raises:
        DamagedError: missing or not safetensors.
    """
    try:
        return mapped_tensors(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read: {error}", "train again with --restart") from error


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file as mappings of it: read where and when they are used, and written to nowhere.

    Raises:
        OSError, SafetensorError: missing or not safetensors.
    """
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity, each looked through once: a NaN is its least and largest number."""
    ends: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors.values():
        if tensor.numel():
            ends.setdefault((tensor.device, tensor.dtype), []).extend(torch.aminmax(tensor))
    return all(bool(torch.isfinite(torch.stack(its)).all()) for its in ends.values())
