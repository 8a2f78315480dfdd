"""Device and precision, through accelerate, whose processes and devices are the only ones there are."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch

from attnbooth_cli.engine import libraries  # noqa: F401
from attnbooth_cli.errors import InputError, ResourceError

M_MMAP_THRESHOLD = -3
"""malloc.h's number of that parameter."""
LARGE_BLOCK = 2 << 20
"""Bytes; smaller ones come so often that asking the system for them costs more time than memory is saved."""
PATIENCE = timedelta(hours=2)
"""How long processes wait for the main one, which downloads base models and makes the class's pictures; PyTorch's ten
minutes are too few for either."""
T = TypeVar("T")


def resolve_device(wanted: str) -> torch.device:
    """A device that is really there; `auto` takes an accelerator when there is one.

    Raises:
        InputError: not a device's name.
        ResourceError: the device is not there.
    """
    if wanted == "auto":
        return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InputError(f"there is no device {wanted!r}", "for example --device cpu, cuda, cuda:1 or mps") from None
    if device.type == "cpu":
        return device
    present = torch.accelerator.current_accelerator(check_available=True)
    if present is None or present.type != device.type or (device.index or 0) >= torch.accelerator.device_count():
        raise ResourceError(f"the device {wanted} is not available here", "leave --device out to use what there is")
    return device


def resolve_precision(wanted: str, device: torch.device) -> str:
    """`auto`: float32 on CPU and MPS, else bf16 where the device has it, else fp16.

    Raises:
        InputError: fp16 on the CPU, where accelerate has no gradient scaler.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise InputError("fp16 training needs a GPU", "use --precision float32 or bf16 on the CPU")
    if wanted != "auto":
        return wanted
    if device.type in ("cpu", "mps"):
        return "float32"
    # Emulated bf16, which older cards offer too, is slower than fp16.
    native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp16"


@contextlib.contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """Lets PyTorch use only kernels that give the same bits every time, during the block.

    Source: PyTorch's notes on reproducibility; cuBLAS reads its variable when the first of its handles is made. What
    has no such kernel still runs, and PyTorch warns of it.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def return_large_blocks() -> None:
    """Has large tensors' memory given back to the system as soon as they are freed, where the C library is glibc.

    By default it keeps blocks of up to 32 MB for itself (mallopt(3), M_MMAP_THRESHOLD), and a step of training then
    holds about a quarter more memory than its tensors have. Asking the system anew each time costs time, on small
    models a tenth of it (docs/performance.md).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def make_accelerator(device: torch.device, precision: str) -> Any:
    """An accelerate `Accelerator` for one run.

    accelerate keeps its configuration in process-wide state and refuses another one; a command that trains several
    projects needs a fresh one a project, so that state (not the process group) is cleared first.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=not _distributed())
    if device.index is not None and not _distributed():
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    else:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if _distributed():
        PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return Accelerator(mixed_precision="no" if precision == "float32" else precision, cpu=device.type == "cpu")


def decided_by_main(decide: Callable[[], T], device: torch.device | None = None) -> T:
    """Runs `decide` in the main process alone and gives its answer (pickled between them) to all.

    Args:
        device: Where the processes will compute, which decides how they talk; whatever is there for None.
    """
    if not _distributed():
        return decide()
    from accelerate.state import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=(device or resolve_device("auto")).type == "cpu", timeout=PATIENCE)
    box: list[Any] = [decide() if state.is_main_process else None]
    answer: T = broadcast_object_list(box)[0]
    return answer


def is_main_process() -> bool:
    """Whether this process writes and reports (always, without a launcher)."""
    return int(os.environ.get("RANK", "0")) == 0


def disband() -> None:
    """Takes leave of the other processes; gloo's threads otherwise abort some of the processes that just end."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def release_memory(device: torch.device) -> None:
    """Gives back what the device's allocator keeps for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
