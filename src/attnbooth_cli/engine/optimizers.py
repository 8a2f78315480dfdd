"""AdamW as a stage is trained with it: torch's own, or with moments in 8 bits (Dettmers et al., ICLR 2022).

Eight bits are bitsandbytes' work: blocks of 256 numbers share a float32 scale, tensors below 4,096 numbers stay
float32, and the paged kind lets the driver move moments to the host's memory while the GPU has no room (its
documentation, "8-bit optimizers"). The steps are the same but for rounding, so the concept is another.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from attnbooth_cli.engine import footprint
from attnbooth_cli.engine.methods import AdamW, OptimizerName
from attnbooth_cli.errors import InputError

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices whose AdamW is one kernel for all tensors, in a third of the time (torch.optim.AdamW, `fused`)."""
EIGHT_BIT: dict[OptimizerName, tuple[str, tuple[str, ...]]] = {
    "adamw8bit": ("AdamW8bit", ("cpu", "cuda", "xpu")),
    "paged_adamw8bit": ("PagedAdamW8bit", ("cuda", "xpu")),
}
"""bitsandbytes' class and the devices it has kernels for (`bitsandbytes/backends` in version 0.50.2; on the CPU it
pages nothing)."""
BLOCK = 256
"""Numbers of a moment that share a scale."""
LEVELS = 256
"""Numbers that 8 bits stand for."""


def require(name: OptimizerName, device: torch.device) -> None:
    """Refuses an optimiser that cannot run here.

    Raises:
        InputError: bitsandbytes is not installed, or has no such optimiser for the device.
    """
    if name == "adamw":
        return
    _, devices = EIGHT_BIT[name]
    if device.type not in devices:
        others = [other for other, (_, its) in EIGHT_BIT.items() if device.type in its]
        raise InputError(
            f"the optimizer {name} does not run on {device.type} (bitsandbytes has it for {', '.join(devices)})",
            f"--set train.optimizer={' or '.join(['adamw', *others])}",
        )
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"the optimizer {name} needs the library bitsandbytes", "pip install 'attnbooth[bitsandbytes]'"
        )


def make(
    name: OptimizerName, groups: Sequence[dict[str, Any]], rate: float, constants: AdamW, device: torch.device
) -> torch.optim.Optimizer:
    """An optimiser that has not taken a step.

    Args:
        groups: torch's parameter groups; a group may have a rate of its own.

    Raises:
        InputError: as `require`.
    """
    settings: dict[str, Any] = {
        "lr": rate, "betas": constants.betas, "eps": constants.eps, "weight_decay": constants.weight_decay,
    }  # fmt: skip
    if name == "adamw":
        return torch.optim.AdamW(list(groups), fused=device.type in FUSED, **settings)
    require(name, device)
    library = importlib.import_module("bitsandbytes")
    made: torch.optim.Optimizer = getattr(library.optim, EIGHT_BIT[name][0])(list(groups), **settings)
    return made


@dataclass
class EarlyUpdates:
    """What `updating_early` has done in one backward pass.

    Attributes:
        waiting: Bytes of gradients that are complete and not used yet.
        begun: Whether some weights have been updated, so that the step cannot be done again.
    """

    waiting: int = 0
    begun: bool = False


@contextmanager
def updating_early(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> Iterator[EarlyUpdates]:
    """During a step's only backward pass, uses gradients up as they come, so that never are all of them in memory.

    Whenever `GRADIENTS_HELD` bytes of them are complete, their weights are updated and they go. AdamW looks at one
    number at a time: weights come out the same to the last bit. What is left at the end is the caller's to use.
    """
    found = EarlyUpdates()

    def complete(parameter: Tensor) -> None:
        found.waiting += parameter.numel() * parameter.element_size()
        if found.waiting >= footprint.GRADIENTS_HELD:
            found.begun, found.waiting = True, 0
            optimizer.step()  # leaves weights without a gradient as they are
            optimizer.zero_grad(set_to_none=True)

    register: Any = nn.Parameter.register_post_accumulate_grad_hook
    handles = [register(parameter, complete) for parameter in parameters]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def begin(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Gives torch's AdamW the moments of zeros that it would make at its first step: where memory does not suffice for
    them, that shows in the first forward pass and not amid `updating_early`."""
    state = {
        index: {"step": torch.zeros(()), **{kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}}
        for index, parameter in enumerate(parameters)
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def stored(state: Mapping[Any, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Tensor]:
    """An optimiser's `state_dict()["state"]` as tensors named `KIND/NAME`, no two of which share memory.

    bitsandbytes wraps what is quantised in a dictionary of its own, counts steps in a Python number, and gives all
    parameters one and the same table of the 256 numbers that 8 bits stand for.

    Args:
        names: The parameters', in the optimiser's order; one that has no state yet is left out.
    """
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for index, name in enumerate(names):
        for kind, value in _flat(state.get(index, {})):
            tensor = torch.as_tensor(value)
            tensors[f"{kind}/{name}"] = tensor.clone() if tensor.data_ptr() in places else tensor
            places.add(tensor.data_ptr())
    return tensors


def restored(tensor: Tensor) -> Tensor | int:
    """A stored value as the optimiser keeps it: what was a Python number is one again."""
    return int(tensor) if tensor.ndim == 0 and tensor.dtype == torch.int64 else tensor


def fits(name: OptimizerName, state: Mapping[str, Tensor], parameter: Tensor) -> bool:
    """Whether what a checkpoint holds of a parameter is what the optimiser keeps of it.

    Fused steps look at no shapes: they would read and write beyond a moment that is too small.
    """
    wanted: dict[str, tuple[int, ...]] = {"step": ()}
    moments = ("exp_avg", "exp_avg_sq") if name == "adamw" else ("state1", "state2")
    wanted |= {kind: tuple(parameter.shape) for kind in moments}
    if name != "adamw" and all(kind in state and state[kind].dtype == torch.uint8 for kind in moments):
        blocks = -(-parameter.numel() // BLOCK)
        wanted |= {f"qmap{number}": (LEVELS,) for number in (1, 2)}
        wanted |= {f"absmax{number}": (blocks,) for number in (1, 2)}
    elif not all(kind in state and state[kind].is_floating_point() for kind in moments):
        return False
    return {kind: tuple(tensor.shape) for kind, tensor in state.items()} == wanted


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for kind, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield kind, value
