"""A single-file checkpoint in the original key layout loads to the same tensors as the pipeline it was made from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from attnbooth_cli.engine import base_models, families

# The renaming below is the original code's module order written out: per down block two (resnet, attention) pairs and
# a downsampler, a middle of resnet, attention, resnet, and per up block three pairs with an upsampler at the end.
# Source: ldm/modules/diffusionmodules/openaimodel.py and model.py of CompVis/latent-diffusion, whose layer lists
# diffusers' single_file_utils.py reads the other way round.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def swap(name: str, table: dict[str, str]) -> str:
    """Replaces the module path at the start of `name`."""
    return next((new + name.removeprefix(old) for old, new in table.items() if name.startswith(f"{old}.")), name)


def unet_name(name: str) -> str:
    """The original name of a U-Net tensor."""
    if match := re.fullmatch(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        place = f"input_blocks.{3 * block + layer + 1}.{int(kind == 'attentions')}"
    elif match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{3 * int(match[1]) + 3}.0.op.{match[2]}"
    elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, rest = match[1], match[3]
        place = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(match[2])}"
    elif match := re.fullmatch(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        place = f"output_blocks.{3 * block + layer}.{int(kind == 'attentions')}"
    elif match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.(.+)", name):
        block = int(match[1])
        return f"output_blocks.{3 * block + 2}.{1 if block == 0 else 2}.{match[2]}"  # the first has no attention
    else:
        return swap(name, UNET_ENDS)
    return f"{place}.{swap(rest, RESNET) if kind == 'resnets' else rest}"


def vae_name(name: str) -> str:
    """The original name of a VAE tensor."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    if match := re.fullmatch(r"(.+)\.mid_block\.attentions\.0\.(.+)", name):
        return f"{match[1]}.mid.attn_1.{swap(match[2], ATTENTION)}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda match: f"up.{3 - int(match[1])}.block.{match[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{3 - int(match[1])}.upsample", name)


def vae_tensor(name: str, value: torch.Tensor) -> torch.Tensor:
    """The original VAE's attention was made of 1x1 convolutions: [o, i] becomes [o, i, 1, 1]."""
    return value[:, :, None, None] if ".mid.attn_1." in name and value.ndim == 2 else value


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_models.bundled_folder() / "tokenizer")
    unet = UNet2DConditionModel(  # the blocks of Stable Diffusion 1.5, narrower
        sample_size=8,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=2,
        norm_num_groups=32,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=64,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def original_state(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """All tensors under the names of the original code."""
    state = {f"model.diffusion_model.{unet_name(name)}": value for name, value in pipeline.unet.state_dict().items()}
    for name, value in pipeline.vae.state_dict().items():
        renamed = vae_name(name)
        state[f"first_stage_model.{renamed}"] = vae_tensor(renamed, value)
    for name, value in pipeline.text_encoder.state_dict().items():
        # transformers flattened CLIPTextModel in 5.6; before, and in published files, names begin with "text_model.".
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return {name: value.contiguous() for name, value in state.items()}


def same_tensors(one: Any, other: Any) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_single_file_gives_back_the_same_tensors(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    config = tmp_path / "cat"
    pipeline.save_pretrained(config)
    for weights in config.rglob("*.safetensors"):
        weights.unlink()
    # As in the published configurations, whose folders for these two are not fetched.
    index = json.loads((config / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (config / "model_index.json").write_text(json.dumps(index))
    state = original_state(pipeline)
    assert len(state) == sum(len(part.state_dict()) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)), (
        "two tensors were given one name"
    )
    save_file(state, tmp_path / "cat.safetensors")

    model = base_models.resolve(str(tmp_path / "cat.safetensors"))
    assert (model.kind, model.config, model.resolution) == ("file", config, 64)
    loaded = StableDiffusionPipeline.from_single_file(
        str(model.path),
        config=str(model.config),
        local_files_only=True,
        safety_checker=None,
        feature_extractor=None,
    )
    same_tensors(loaded.unet, pipeline.unet)
    same_tensors(loaded.vae, pipeline.vae)
    same_tensors(loaded.text_encoder, pipeline.text_encoder)
    assert loaded.tokenizer("a cat").input_ids == pipeline.tokenizer("a cat").input_ids
    assert loaded.scheduler.config.prediction_type == model.prediction_type

    components = families.load_components(model)  # asks for none of the parts that are not fetched
    same_tensors(components.unet, pipeline.unet)
