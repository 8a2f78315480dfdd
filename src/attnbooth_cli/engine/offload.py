"""Frozen models leave the device while nothing needs them, and come back for what does.

A text encoder is done once its prompts are encoded, where these do not change; the VAE once every picture that can be
drawn is. Both come back for sample pictures. On the CPU there is nowhere else to go, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

HOST = torch.device("cpu")
"""Where models wait."""


def put_aside(model: Any, device: torch.device) -> None:
    """Moves a model off its device; nothing if that is the host itself."""
    if pays(device) and place(model) != HOST:
        move(model, HOST)


def bring_back(model: Any, device: torch.device) -> None:
    """Moves a model to its device, if it is elsewhere."""
    if pays(device) and place(model) == HOST:
        move(model, device)


@contextlib.contextmanager
def at_hand(device: torch.device, *models: Any) -> Iterator[None]:
    """Has the models on the device during the block; those that had been put aside are so again after it."""
    away = [model for model in models if pays(device) and place(model) == HOST]
    for model in away:
        bring_back(model, device)
    try:
        yield
    finally:
        for model in away:
            put_aside(model, device)


def pays(device: torch.device) -> bool:
    """Whether the device has a memory of its own."""
    return device.type != HOST.type


def place(model: Any) -> torch.device:
    """Where a model's weights are."""
    found: torch.device = next(model.parameters()).device
    return found


def move(model: Any, device: torch.device) -> None:
    """Moves a model, in place."""
    model.to(device)
