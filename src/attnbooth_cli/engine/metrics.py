"""CLIP scores of personalisation, as Textual Inversion's evaluation code takes them (Gal et al. 2022).

Raw cosines, never CLIPScore's factor of 2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from attnbooth_cli.engine import libraries  # noqa: F401
from attnbooth_cli.errors import DamagedError

BATCH_SIZE = 32


@dataclass(frozen=True)
class Judge:
    """A CLIP model that scores pictures.

    Attributes:
        preprocessing: What its image processor does, for the record.
    """

    model: Any
    processor: Any
    tokenizer: Any
    preprocessing: dict[str, Any]


def load_judge(folder: Path, device: torch.device) -> Judge:
    """Loads a CLIP model from a folder.

    The bundled judge lies inside the bundled base model and shares its text tower, which is stored once.

    Raises:
        DamagedError: its files cannot be read.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    shared = not (folder / "config.json").exists() and (folder / "clip").is_dir()
    place = folder / "clip" if shared else folder
    try:
        if shared:
            model = CLIPModel(CLIPConfig.from_pretrained(place))
            model.load_state_dict(_joined_weights(folder))
        else:
            model = CLIPModel.from_pretrained(str(place), use_safetensors=True, local_files_only=True)
        processor = CLIPImageProcessorPil.from_pretrained(str(place), local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(
            str(folder / "tokenizer" if shared else folder), local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise DamagedError(f"the judge in {folder} cannot be read: {error}", "name another with --clip") from error
    model.float().requires_grad_(False).eval().to(device)
    return Judge(model, processor, tokenizer, processor.to_dict())


@torch.no_grad()
def image_features(judge: Judge, pictures: Sequence[Image.Image]) -> Tensor:
    """L2-normalised CLIP features of pictures, [n, d] float32 on the CPU."""
    rows = []
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = list(pictures[start : start + BATCH_SIZE])
        pixels = judge.processor(images=batch, return_tensors="pt")["pixel_values"].to(judge.model.device)
        rows.append(judge.model.visual_projection(judge.model.vision_model(pixel_values=pixels).pooler_output))
    return F.normalize(torch.cat(rows), dim=-1).cpu()


@torch.no_grad()
def text_features(judge: Judge, texts: Sequence[str]) -> Tensor:
    """L2-normalised CLIP features of texts, [n, d] float32 on the CPU. Longer texts are cut at the model's length."""
    length = min(judge.tokenizer.model_max_length, judge.model.config.text_config.max_position_embeddings)
    tokens = judge.tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).to(judge.model.device)
    pooled = judge.model.text_model(input_ids=tokens.input_ids).pooler_output
    return F.normalize(judge.model.text_projection(pooled), dim=-1).cpu()


def identity_score(references: Tensor, generated: Tensor) -> float:
    """Mean cosine over all pairs of reference [r, d] and generated [g, d] features, both L2-normalised."""
    return float((references.double() @ generated.double().T).mean())


def text_score(generated: Tensor, text: Tensor) -> float:
    """Mean cosine of generated [g, d] features with one text's [d] features, both L2-normalised."""
    return float((generated.double() @ text.double()).mean())


def _joined_weights(folder: Path) -> dict[str, Tensor]:
    from attnbooth_cli.engine.weights import read_tensors

    text_tower = read_tensors(folder / "text_encoder" / "model.safetensors")
    return {
        **read_tensors(folder / "clip" / "model.safetensors"),
        **{f"text_model.{name}": tensor for name, tensor in text_tower.items()},
    }
