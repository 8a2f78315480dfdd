"""LoRA and OFT (through peft) in place of the weights of every attention layer of the U-Net.

An adapter is attached for training and merged into the weights it adapts when its stage ends; from then on the U-Net is
an ordinary one again, so that nothing else need know of adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnbooth_cli.engine.methods import Stage
from attnbooth_cli.engine.rng import keyed_generator
from attnbooth_cli.engine.weights import read_tensors, write_tensors
from attnbooth_cli.errors import DamagedError, InputError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Query, key, value and output of self- and cross-attention (huggingface/diffusers, train_dreambooth_lora.py)."""
FILES = {"lora": "pytorch_lora_weights.safetensors", "oft": "oft_weights.safetensors"}
"""Where an adapter is stored; the name and the contents of LoRA's are what diffusers' load_lora_weights reads."""

_PARTS = ("lora_", "oft_")
_NAME = "default"


def attach(unet: Any, stage: Stage, seed: int) -> None:
    """Puts an untrained adapter on the U-Net, which starts as if nothing had been attached; nothing if there is one.

    OFT's rotations are exact Cayley transforms, and not bounded (the paper's COFT bounds them by a number that grows
    with the layer, which on small layers leaves nothing to learn).

    Args:
        seed: Keys the random half of LoRA's two factors.

    Raises:
        InputError: peft is not installed, or the adapter does not fit the U-Net.
    """
    if attached(unet):
        return
    require([stage])
    from peft import LoraConfig, OFTConfig, inject_adapter_in_model

    size = stage.adapter_size
    widths = {its.in_features for name, its in unet.named_modules() if name.endswith(TARGETS)}
    if stage.adapter == "oft" and any(width % size for width in widths):
        raise InputError(
            f"{size} blocks do not fit a U-Net of widths {', '.join(map(str, sorted(widths)))}",
            "--set train.unet.adapter_size=N with a number that divides them",
        )
    config: Any = OFTConfig(r=size, oft_block_size=0, use_cayley_neumann=False, target_modules=list(TARGETS))
    if stage.adapter == "lora":
        config = LoraConfig(r=size, lora_alpha=size, init_lora_weights="gaussian", target_modules=list(TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_generator(seed, "adapter").initial_seed())
        inject_adapter_in_model(config, unet, _NAME)
    unet.requires_grad_(False)
    unet.to(unet.device)


def attached(unet: Any) -> bool:
    """Whether the U-Net has an adapter."""
    return any(part in name for name, _ in unet.named_parameters() for part in _PARTS)


def parameters(unet: Any) -> dict[str, nn.Parameter]:
    """The adapter's own parameters by name."""
    return {name: its for name, its in unet.named_parameters() if any(part in name for part in _PARTS)}


def require(stages: Iterable[Stage]) -> None:
    """Refuses adapters that cannot be made here, before the stages in front of theirs have been trained.

    Raises:
        InputError: peft is not installed.
    """
    for stage in stages:
        if stage.adapts_unet and find_spec("peft") is None:
            raise InputError(f"{stage.adapter} needs the library peft", "pip install 'attnbooth[peft]'")


@torch.no_grad()
def merged(unet: Any) -> dict[str, Tensor]:
    """The U-Net's weights as `merge` would leave them; the U-Net itself, which may be training, stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: its for name, its in unet.named_modules() if isinstance(its, BaseTunerLayer)}
    tensors = {
        name: its for name, its in unet.state_dict().items() if not any(name.startswith(f"{at}.") for at in layers)
    }
    for at, layer in layers.items():
        alone = copy.deepcopy(layer)
        alone.merge()
        tensors |= {f"{at}.{name}": its for name, its in alone.get_base_layer().state_dict().items()}
    return tensors


@torch.no_grad()
def merge(unet: Any) -> None:
    """Works the adapter into the weights it adapts, and takes it off; nothing if there is none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in (its for its in unet.modules() if isinstance(its, BaseTunerLayer)):
        layer.merge()
    detach(unet)


def detach(unet: Any) -> None:
    """Takes the adapter off as it is, also one that training has left half-way; nothing if there is none."""
    if not attached(unet):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [(name, its) for name, its in unet.named_modules() if isinstance(its, BaseTunerLayer)]:
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(unet, "peft_config"):
        del unet.peft_config


def write(folder: Path, stage: Stage, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes an adapter's tensors, named as diffusers names them."""
    named = {f"unet.{name.replace(f'.{_NAME}', '')}": tensor.to(dtype) for name, tensor in tensors.items()}
    write_tensors(folder / FILES[str(stage.adapter)], named)


def apply(unet: Any, stage: Stage, folder: Path) -> None:
    """Works a stored adapter into the U-Net.

    Raises:
        DamagedError: its file is missing or does not fit.
        InputError: as `attach`.
    """
    path = folder / FILES[str(stage.adapter)]
    stored = read_tensors(path)
    attach(unet, stage, 0)
    with torch.no_grad():
        for name, parameter in parameters(unet).items():
            tensor = stored.get(f"unet.{name.replace(f'.{_NAME}', '')}")
            if tensor is None or tensor.shape != parameter.shape:
                raise DamagedError(f"{path} does not fit the base model ({name})", "use the model it was trained on")
            parameter.copy_(tensor)
    merge(unet)
