"""What a step needs, told by the U-Net's shape, is what PyTorch keeps and counts. No numbers are computed here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnbooth_cli.engine import footprint
from attnbooth_cli.engine.attention import cross_attention_modules, fused, recording_statistics
from attnbooth_cli.engine.base_models import bundled_folder
from attnbooth_cli.engine.losses import attention_regularisation
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH, LORA, AdamW, Stage
from tests.engine.test_layouts import BLOCKS

STAGES = {stage.name: stage for stage in ATTNDREAMBOOTH.stages}
LAYOUTS: dict[str, dict[str, Any]] = {
    "sd15": {**BLOCKS, "attention_head_dim": 8},
    "sd21": {**BLOCKS, "attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True},
}
SIDE = 32


def made(layout: str) -> UNet2DConditionModel:
    if layout == "tiny":
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(bundled_folder() / "unet")).eval()
    return UNet2DConditionModel(**LAYOUTS[layout]).eval()


def go_through(unet: UNet2DConditionModel, stage: Stage, batch: int, recorded: bool, backward: bool = False) -> None:
    """A step's forward pass, with gradients on for what the stage trains, and its backward pass."""
    unet.requires_grad_(stage.name == "unet")
    if stage.name == "attention":
        for module in cross_attention_modules(unet).values():
            module.requires_grad_(True)
    told = torch.zeros(1, 77, unet.config.cross_attention_dim, requires_grad=stage.name == "embedding")
    latents, timesteps = torch.zeros(batch, unet.config.in_channels, SIDE, SIDE), torch.zeros(batch, dtype=torch.long)
    if not recorded:
        with fused(unet):
            unet(latents, timesteps, told.expand(batch, -1, -1)).sample.square().mean()
        return
    with recording_statistics(unet, [5, 6]) as recorder:
        with recorder.armed():
            prediction = unet(latents, timesteps, told.expand(batch, -1, -1)).sample
        loss = prediction.square().mean() + sum(attention_regularisation(recorder.layers, 1.0, 1.0))
        if backward:
            loss.backward()


def kept_by_autograd(unet: UNet2DConditionModel, stage: Stage, batch: int, recorded: bool) -> int:
    """Bytes of what the backward pass will need, weights left out."""
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            seen.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        go_through(unet, stage, batch, recorded)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("layout", "recorded"), [("tiny", True), ("tiny", False), ("sd15", True), ("sd21", False)])
def test_kept_bytes_are_those_of_autograd(layout: str, stage: str, recorded: bool) -> None:
    with FakeTensorMode():
        unet = made(layout)
        kept = kept_by_autograd(unet, STAGES[stage], 2, recorded)
    walked = footprint.parts(unet.config, SIDE, recorded=recorded)
    assert footprint.kept_bytes(walked, STAGES[stage], 2) == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("layout", ["tiny", "sd15", "sd21"])
def test_weights_are_counted(layout: str) -> None:
    with FakeTensorMode():
        unet = made(layout)
        modules = cross_attention_modules(unet).values()
        attention = sum(parameter.numel() for module in modules for parameter in module.parameters())
    walked = footprint.parts(unet.config, SIDE)
    assert footprint.trained_weights(walked, STAGES["unet"]) == pytest.approx(unet.num_parameters(), rel=2e-3)
    assert footprint.trained_weights(walked, STAGES["attention"]) == attention
    assert footprint.trained_weights(walked, STAGES["embedding"]) == 0
    assert footprint.trained_weights(walked, LORA.stages[-1]) == 0


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("layout", "stage"), [("tiny", "embedding"), ("tiny", "attention"), ("tiny", "unet"), ("sd15", "unet")]
)
def test_operations_are_those_counted(
    layout: str, stage: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attention in plain products, which PyTorch's counter knows: two backward for one forward."""
    monkeypatch.setattr(footprint, "ATTENTION_BACKWARD", 2)
    its = replace(STAGES[stage], batch_size=2)
    with FakeTensorMode():
        unet = made(layout)
        if checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            go_through(unet, its, 2, recorded=True, backward=True)
    told = footprint.step_operations(footprint.parts(unet.config, SIDE), its, checkpointing=checkpointing)
    assert told == pytest.approx(counted.get_total_flops(), rel=0.06 if checkpointing else 0.01)


def test_checkpointing_needs_less_memory_and_more_arithmetic() -> None:
    walked = footprint.parts(UNet2DConditionModel.load_config(bundled_folder() / "unet"), SIDE)
    stage = STAGES["unet"]
    assert footprint.step_bytes(walked, stage, 8, checkpointing=True) < 0.5 * footprint.step_bytes(walked, stage, 8)
    assert footprint.step_operations(walked, stage, checkpointing=True) > footprint.step_operations(walked, stage)
    assert footprint.step_bytes(walked, stage, 1) < footprint.step_bytes(walked, stage, 2)


def test_gradients_that_are_used_up_early_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "GRADIENTS_HELD", 2**20)
    with FakeTensorMode():
        unet = made("sd15")
    walked = footprint.parts(unet.config, 8)  # few activations beside the weights
    stage = replace(STAGES["unet"], batch_size=1)
    late, early = (footprint.step_bytes(walked, stage, 1, early=its) for its in (False, True))
    activations = footprint.kept_bytes(walked, stage, 1)
    assert late > 4 * unet.num_parameters()
    assert activations <= early < late
    assert early < activations + footprint.GRADIENTS_HELD + 4 * max(part.weights for part in walked)
    assert footprint.updates_early(stage, 1, AdamW(), "adamw")
    assert not footprint.updates_early(replace(stage, batch_size=2), 1, AdamW(), "adamw")


def test_other_kinds_of_u_net_are_not_guessed_at() -> None:
    config = dict(UNet2DConditionModel.load_config(bundled_folder() / "unet"))
    with pytest.raises(ValueError, match="unlike"):
        footprint.parts({**config, "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]}, SIDE)
