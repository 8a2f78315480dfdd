"""Base models of real layouts with random weights, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnbooth_cli.engine.base_models import bundled_folder, resolve
from attnbooth_cli.engine.families import Components, TextEncoder, load_components


@dataclass(frozen=True)
class Layout:
    """A base model's shape.

    Attributes:
        unet: What the U-Net sets beside diffusers' defaults, which are Stable Diffusion's otherwise.
        text: Layers and width of the text encoder.
        width: Of every component, as a part of the real one's.
    """

    unet: dict[str, Any]
    text: tuple[int, int]
    width: float = 1.0


SD15 = {"attention_head_dim": 8}
SD21 = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
LAYOUTS = {
    "sd15": Layout(SD15, (12, 768)),
    "sd15-half": Layout(SD15, (12, 768), 0.5),
    "sd21": Layout(SD21, (23, 1024)),
}
RESOLUTION = 512
TOKENS = 77


def resolution_of(layout: str) -> int:
    """Pixels along a side of its training pictures."""
    return 64 if layout == "tiny" else RESOLUTION


def unet_of(layout: Layout) -> Any:
    """The U-Net alone, frozen."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        block_out_channels=tuple(int(layout.width * channels) for channels in (320, 640, 1280, 1280)),
        cross_attention_dim=int(layout.width * layout.text[1]),
        **layout.unet,
    )
    return unet.eval().requires_grad_(False)


def components_of(name: str) -> Components:
    """A base model: the bundled one, or one of a layout's shape with random weights, float32 on the CPU."""
    if name == "tiny":
        return load_components(resolve("tiny"))
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    layout = LAYOUTS[name]
    torch.manual_seed(0)
    widths = tuple(int(layout.width * channels) for channels in (128, 256, 512, 512))
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=RESOLUTION,
    )
    tokenizer = CLIPTokenizer.from_pretrained(bundled_folder() / "tokenizer", model_max_length=TOKENS)
    layers, width = layout.text[0], int(layout.width * layout.text[1])
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = CLIPTextModel(config)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    models: tuple[nn.Module, nn.Module] = (vae, text_encoder)
    for model in models:
        model.eval().requires_grad_(False)
    return Components("stable-diffusion", (TextEncoder(tokenizer, text_encoder),), vae, unet_of(layout), schedule)
