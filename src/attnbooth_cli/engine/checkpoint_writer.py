"""Checkpoints off the critical path: on an accelerator they are written while the next steps are computed.

In stage 3 of Stable Diffusion 2.1 a checkpoint is 10 GB, which take longer to write and to hash than fifty steps to
compute on a fast GPU. They are copied to the host's memory first, so that the steps that follow do not change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnbooth_cli.engine import checkpoint
from attnbooth_cli.engine.checkpoint import Checkpoint
from attnbooth_cli.engine.machine import free_host_memory
from attnbooth_cli.engine.methods import StageName

Parts = Mapping[str, Mapping[str, Tensor]]

ROOM = 2
"""A copy is made where this many times its size are free."""


def writes_behind(device: torch.device) -> bool:
    """Whether checkpoints are written beside the steps: on a CPU both would want the same cores and memory."""
    return device.type != "cpu"


@dataclass
class CheckpointWriter:
    """Writes a run's checkpoints under `folder`, one at a time, and prunes those that are not needed any more.

    Attributes:
        behind: Whether beside the steps that follow, where there is room for a copy.
    """

    folder: Path
    behind: bool
    _thread: ThreadPoolExecutor = field(init=False, default_factory=lambda: ThreadPoolExecutor(1, "checkpoints"))
    _pending: Future[Checkpoint] | None = field(init=False, default=None)

    def save(self, stage: StageName, step: int, parts: Parts, scaler: Mapping[str, Any] | None) -> list[Checkpoint]:
        """Has a checkpoint written, after the one before it is.

        Returns:
            Those that are durable by now and were not told of yet; this one may come later, from `written`.

        Raises:
            ResourceError: it, or the one before it, cannot be written.
        """
        done = self.written(wait=True)
        size = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())
        if not self.behind or free_host_memory() < ROOM * size:
            return [*done, self._write(stage, step, parts, scaler)]
        held = {
            name: {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
            for name, tensors in parts.items()
        }
        self._pending = self._thread.submit(self._write, stage, step, held, dict(scaler) if scaler else None)
        return done

    def written(self, *, wait: bool = False) -> list[Checkpoint]:
        """What has become durable since it was last asked.

        Args:
            wait: Until nothing is being written.

        Raises:
            ResourceError: it could not be written.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return []
        pending, self._pending = self._pending, None
        return [pending.result()]

    def close(self) -> None:
        """Waits for what is being written, and forgets how it ends: something else has gone wrong, or all is done."""
        self._thread.shutdown()

    def _write(self, stage: StageName, step: int, parts: Parts, scaler: Mapping[str, Any] | None) -> Checkpoint:
        place = self.folder / checkpoint.checkpoint_name(stage, step)
        saved = checkpoint.save(place, stage, step, parts, scaler)
        checkpoint.prune(self.folder, saved.folder)
        return saved
