"""The models that look at pictures and texts for `eval`, and the features they give: CLIP, and DINO beside it.

A judge says what it is (`identity`), so that its features can be kept, and scores by different judges told apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from attnbooth_cli.engine import libraries  # noqa: F401
from attnbooth_cli.engine.model_files import is_commit
from attnbooth_cli.engine.preprocessing import textual_inversion_pixels, textual_inversion_training
from attnbooth_cli.engine.protocols import Preprocessing
from attnbooth_cli.engine.weight_hashes import file_sha256
from attnbooth_cli.engine.weights import read_tensors
from attnbooth_cli.errors import DamagedError
from attnbooth_cli.project import durable

BATCH_SIZE = 32


def _as_it_is(picture: Image.Image) -> Image.Image:
    return picture


T = TypeVar("T")
PictureFeatures = Callable[[Sequence[Image.Image]], Tensor]
"""RGB pictures to L2-normalised features, [n, d] float32 on the CPU."""


@dataclass(frozen=True)
class PictureJudge:
    """A model that embeds pictures.

    Attributes:
        identity: What its features depend on: reference, commit or hash, and preprocessing. JSON.
        width: d, the length of a feature vector.
        features: Embeds pictures.
        training: What is done to pictures of the concept before they are embedded, as they come in any size.
    """

    identity: dict[str, Any]
    width: int
    features: PictureFeatures
    training: Callable[[Image.Image], Image.Image] = field(default=_as_it_is, kw_only=True)


@dataclass(frozen=True)
class ClipJudge(PictureJudge):
    """A CLIP model.

    Attributes:
        texts: Embeds texts, [n, d] float32 on the CPU, L2-normalised; longer ones are cut at the model's length.
    """

    texts: Callable[[Sequence[str]], Tensor]


def load_clip(ref: str, folder: Path, device: torch.device, preprocessing: Preprocessing = "judge") -> ClipJudge:
    """Loads a CLIP model from the folder its reference was resolved to.

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
    length = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    def pixels(pictures: Sequence[Image.Image]) -> Tensor:
        if preprocessing == "textual-inversion":
            size = int(model.config.vision_config.image_size)
            return textual_inversion_pixels(pictures, size, processor.image_mean, processor.image_std)
        found: Tensor = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return found

    def embed(pictures: Sequence[Image.Image]) -> Tensor:
        pooled = model.vision_model(pixel_values=pixels(pictures).to(device)).pooler_output
        projected: Tensor = model.visual_projection(pooled)
        return projected

    def embed_texts(sentences: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(sentences), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(device)
        projected: Tensor = model.text_projection(model.text_model(input_ids=tokens.input_ids).pooler_output)
        if not torch.isfinite(projected).all():
            raise DamagedError(f"the judge {ref} gives features that are not finite", "name another with --clip")
        return projected

    how = processor.to_dict() if preprocessing == "judge" else preprocessing
    folders = [place, folder / "text_encoder", folder / "tokenizer"] if shared else [place]
    identity = _identity("clip", ref, folders, how)
    training = textual_inversion_training if preprocessing == "textual-inversion" else _as_it_is
    return ClipJudge(
        identity, model.config.projection_dim, _in_batches(embed), _in_batches(embed_texts), training=training
    )


def load_dino(ref: str, folder: Path, device: torch.device) -> PictureJudge:
    """Loads a DINO vision transformer (Caron et al. 2021); its features are the class token of the last layer.

    Raises:
        DamagedError: its files cannot be read.
    """
    from transformers import ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    try:
        model = ViTModel.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, add_pooling_layer=False
        )
        processor = ViTImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DamagedError(f"the judge in {folder} cannot be read: {error}", "name another with --dino") from error
    model.float().requires_grad_(False).eval().to(device)

    def embed(pictures: Sequence[Image.Image]) -> Tensor:
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(device)
        token: Tensor = model(pixel_values=pixels).last_hidden_state[:, 0]
        return token

    identity = _identity("dino", ref, [folder], processor.to_dict())
    return PictureJudge(identity, model.config.hidden_size, _in_batches(embed))


def _in_batches(embed: Callable[[Sequence[T]], Tensor]) -> Callable[[Sequence[T]], Tensor]:
    """Unit vectors, [n, d] float32 on the CPU, a bounded number at a time."""

    @torch.no_grad()
    def features(its: Sequence[T]) -> Tensor:
        parts = [embed(its[start : start + BATCH_SIZE]) for start in range(0, len(its), BATCH_SIZE)]
        return F.normalize(torch.cat(parts), dim=-1).cpu()

    return features


def _identity(kind: str, ref: str, folders: Sequence[Path], preprocessing: Any) -> dict[str, Any]:
    """What decides a judge's features: its weights, configurations and tokenizer by hash, a hub model's commit too, and
    how it takes pictures."""
    weights, texts = (
        [path for folder in folders for name in names for path in sorted(folder.glob(name))]
        for names in (("*.safetensors",), ("config.json", "tokenizer*.json", "vocab.*", "merges.txt"))
    )
    document = {
        "kind": kind,
        "ref": ref,
        "revision": folders[0].name if is_commit(folders[0].name) else None,
        "sha256": durable.sha256_of_text("\n".join(file_sha256(path) for path in weights)),
        "config_sha256": durable.sha256_of_text("\n".join(durable.sha256(path) for path in texts)),
        "preprocessing": preprocessing,
    }
    # As a report gives it back, so that both compare equal.
    found: dict[str, Any] = json.loads(json.dumps(document, default=str))
    return found


def _joined_weights(folder: Path) -> dict[str, Tensor]:
    text_tower = read_tensors(folder / "text_encoder" / "model.safetensors")
    return {
        **read_tensors(folder / "clip" / "model.safetensors"),
        **{f"text_model.{name}": tensor for name, tensor in text_tower.items()},
    }
