"""The finished parts, put together as the package carries them: one diffusers folder in float16, and its judge."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel

from tools.tiny.tokenizer import load_tokenizer
from tools.tiny.unet import NOISE_SCHEDULE

LIMIT = 20_000_000
"""Bytes the whole folder may have."""


def load_pipeline(work: Path, unet: UNet2DConditionModel | None = None) -> StableDiffusionPipeline:
    """The pipeline of a work folder in float32; the best autoencoder there is, and `unet` or the finished one."""
    final = work / "vae" / "model"
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(final if final.exists() else work / "vae" / "first"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=load_tokenizer(work),
        unet=unet if unet is not None else UNet2DConditionModel.from_pretrained(work / "unet" / "model"),
        scheduler=DDPMScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def image_processor() -> CLIPImageProcessor:
    """The judge's preprocessing: 64 pixels, values in [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    side = {"height": 64, "width": 64}
    return CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=side, image_mean=half, image_std=half)


def _forget_origin(config: Path) -> None:
    """Takes the folder a model was read from out of its configuration, where diffusers notes it."""
    lines = config.read_text("utf-8").splitlines(keepends=True)
    config.write_text("".join(line for line in lines if '"_name_or_path"' not in line), "utf-8")


def export(work: Path, folder: Path) -> int:
    """Write pipeline and judge to `folder`, replacing what was there but its licences; return the bytes written.

    The judge's text tower is the pipeline's text encoder and is stored there alone.

    Raises `ValueError` if it is more than `LIMIT`.
    """
    made = work / "export"
    shutil.rmtree(made, ignore_errors=True)
    load_pipeline(work).to(torch.float16).save_pretrained(made)
    for name in ("unet", "vae"):
        _forget_origin(made / name / "config.json")
    judge = CLIPModel.from_pretrained(work / "clip" / "model", dtype=torch.float16)
    judge.config.save_pretrained(made / "clip")
    tensors = {name: tensor for name, tensor in judge.state_dict().items() if not name.startswith("text_model.")}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, made / "clip" / "model.safetensors")
    image_processor().save_pretrained(made / "clip")
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    if size > LIMIT:
        raise ValueError(f"the bundled model would take {size:,} bytes, more than {LIMIT:,}")
    for part in made.iterdir():
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        shutil.move(part, target)
    return size


def export_judges(work: Path, folder: Path) -> None:
    """Copy the two independent judges to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("classifier", "instance_encoder"):
        shutil.copy(work / "judges" / f"{name}.safetensors", folder)
