"""Real Stable Diffusion 1.5 and 2.1 layouts with random weights and small widths, through the whole command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from attnbooth_cli.cli.app import run
from attnbooth_cli.engine.attention import cross_attention_modules
from attnbooth_cli.engine.base_models import bundled_folder, resolve
from attnbooth_cli.engine.families import load_components
from attnbooth_cli.errors import InputError
from tests.engine.conftest import EXAMPLE

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    "sample_size": 8,
}


def save_layout(folder: Path, generation: int) -> Path:
    """A pipeline folder with the blocks, attention and scheduler of Stable Diffusion 1.5 or 2.1 (v-prediction)."""
    torch.manual_seed(0)
    if generation == 1:
        unet = UNet2DConditionModel(**BLOCKS, attention_head_dim=8)
        scheduler = PNDMScheduler(**{k: v for k, v in SCHEDULE.items() if k != "clip_sample"}, skip_prk_steps=True)
        text = {"num_hidden_layers": 2, "hidden_act": "quick_gelu"}
    else:
        heads = (1, 2, 4, 4)
        unet = UNet2DConditionModel(
            **BLOCKS, attention_head_dim=heads, use_linear_projection=True, upcast_attention=True
        )
        scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction")
        text = {"num_hidden_layers": 3, "hidden_act": "gelu"}
    tokenizer = CLIPTokenizer.from_pretrained(bundled_folder() / "tokenizer", model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=909,
        eos_token_id=910,
        **text,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    assert len(cross_attention_modules(unet)) == 16
    return folder


@pytest.mark.parametrize("generation", [1, 2])
def test_init_train_generate(generation: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_layout(tmp_path / "model", generation)
    project = tmp_path / "my_cat"
    assert run(["init", str(project), "--images", str(EXAMPLE), "--category", "cat", "--model", str(model)]) == 0
    capfd.readouterr()
    assert run(["train", str(project), "--smoke", "--json"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[-1]["event"] == "done"
    steps = [event for event in events if event["event"] == "step"]
    assert [step["stage"] for step in steps] == ["embedding"] * 2 + ["attention"] * 2 + ["unet"] * 2
    assert steps[-1]["attention_loss"] > 0
    start = events[0]
    assert start["resolution"] == 64
    assert run(["generate", str(project), "a photo of a {} on the beach", "--steps", "2", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert Path(document["pictures"][0]["path"]).exists()
    card = json.loads((project / "concept" / "concept.json").read_text())
    assert card["base"]["prediction_type"] == ("epsilon" if generation == 1 else "v_prediction")
    assert run(["inspect-attn", str(project), "a photo of a {}", "--steps", "2", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert len(report["layers"]) == 16
    assert [word["word"] for word in report["words"]] == [
        "a", "photo", "of", "a (2)", "<my-cat>", "cat", "[start]", "[end]", "[padding]",
    ]  # fmt: skip


def test_a_text_encoder_that_was_not_really_read_is_refused(tmp_path: Path) -> None:
    """transformers fills parameters whose names it does not know with random numbers."""
    model = save_layout(tmp_path / "model", 1)
    path = model / "text_encoder" / "model.safetensors"
    save_file({f"unknown.{name}": tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match="text encoder"):
        load_components(resolve(str(model)))
