"""CLIP: its text tower becomes the frozen text encoder, the whole of it the bundled judge.

Three losses share one embedding space: captions against pictures (Radford et al. 2021), a picture against the other
picture of the same instance (so that the judge tells one cat from another and not only cats from dogs), and, on linear
heads that are thrown away, the attributes a caption names. The text tower is trained in the first phase only; the
second goes on with the image tower, beside a text tower on which the U-Net may already be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from tools.tiny.captions import ordinary
from tools.tiny.dataset import (
    ATTRIBUTES,
    CAPTIONS_EACH,
    NOUN_NAMES,
    open_judge_data,
    open_split,
)
from tools.tiny.tokenizer import POSITIONS, encode, load_tokenizer
from tools.tiny.training import Draw, Modules, Schedule, train
from tools.tiny.vae import scaled

WIDTH = 128
"""Width of the text tower and of the joint space; the U-Net's `cross_attention_dim`."""
BATCH = 128
TEMPERATURE = 0.1
"""Of the contrast between instances: the softest at which instances of a category separate."""


def configuration(vocabulary: int) -> CLIPConfig:
    """A text tower of 3 layers, an image tower of 5 over 8 x 8 patches."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "projection_dim": WIDTH,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        "hidden_size": 144,
        "intermediate_size": 576,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": WIDTH,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    config._attn_implementation = "eager"
    return config


def build(vocabulary: int) -> dict[str, nn.Module]:
    """An untrained CLIP and its passing heads."""
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(names)) for name, names in ATTRIBUTES.items()})
    return {"clip": CLIPModel(configuration(vocabulary)), "heads": heads}


def build_images(first: Path) -> dict[str, nn.Module]:
    """CLIP as the first phase left it in the folder `first`, its text tower frozen."""
    clip = CLIPModel.from_pretrained(first, attn_implementation="eager")
    for part in (clip.text_model, clip.text_projection):
        part.requires_grad_(False)
    return {"clip": clip}


def image_embeddings(clip: CLIPModel, pictures: Tensor) -> Tensor:
    """Unit vectors, float32 `[b, WIDTH]`, of `pictures` `[b, 3, 64, 64]` in [-1, 1]."""
    pooled = clip.vision_model(pixel_values=pictures.to(clip.dtype)).pooler_output
    return normalize(clip.visual_projection(pooled).float(), dim=-1)


def text_embeddings(clip: CLIPModel, tokens: Tensor) -> Tensor:
    """Unit vectors, float32 `[b, WIDTH]`, of token ids `[b, n]`.

    Columns that hold padding alone are cut off: attention is causal, so nothing before them can tell.
    """
    end = int((tokens.eq(clip.config.text_config.eos_token_id)).int().argmax(1).max()) + 1
    pooled = clip.text_model(input_ids=tokens[:, :end]).pooler_output
    return normalize(clip.text_projection(pooled).float(), dim=-1)


@lru_cache(maxsize=1)
def _data(work: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    split = open_split(work, "train")
    return split.pictures, split.labels, np.load(work / "pictures" / "train-tokens.npy", mmap_mode="r")


def augmented(pictures: Tensor, draw: Draw, strength: float = 0.5) -> Tensor:
    """Mirror half of `pictures` `[b, 3, s, s]`; stretch, turn and shift each, so that the shape counts and not the
    sprite's outline. `strength` is the range of the log of either side's length and of the angle in radians."""
    b = len(pictures)
    scale = torch.exp(strength * (draw.uniform(2) - 0.5))
    flip = torch.where(draw.uniform() < 0.5, -1.0, 1.0)
    angle = strength * (draw.uniform() - 0.5)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = scale[:, 0] * torch.cos(angle) * flip
    theta[:, 0, 1] = -torch.sin(angle)
    theta[:, 1, 0] = torch.sin(angle) * flip
    theta[:, 1, 1] = scale[:, 1] * torch.cos(angle)
    theta[:, :, 2] = 0.16 * (draw.uniform(2) - 0.5)
    grid = nn.functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    return nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def drawn_pairs(count: int, draw: Draw) -> np.ndarray:
    """Numbers of pictures in pairs, the first of all pairs and then the second of all: `[2 B]` of `count`."""
    pair = draw.indices(count // 2).numpy()
    return np.concatenate([2 * pair, 2 * pair + 1])


def augmented_pairs(pictures: np.ndarray, draw: Draw, strength: float) -> Tensor:
    """Pictures uint8 `[2 B, 64, 64, 3]`, halves drawn one after the other: float32 `[2 B, 3, 64, 64]` in [-1, 1]."""
    return torch.cat([augmented(half, draw, strength) for half in scaled(pictures).chunk(2)])


def instance_contrast(embeddings: Tensor, identity: Tensor, temperature: float) -> tuple[Tensor, float]:
    """InfoNCE over pairs, `embeddings` `[2 B, d]` of unit length, partner i + B; also how often the partner is
    nearest (Chen et al. 2020, NT-Xent). Pictures of equal `identity` `[2 B]` are no contrast to each other."""
    n = len(embeddings)
    partner = torch.arange(n).roll(n // 2)
    alike = identity[:, None] == identity[None]
    alike[torch.arange(n), partner] = False
    logits = (embeddings @ embeddings.T / temperature).masked_fill(alike, -torch.inf)
    return cross_entropy(logits, partner), (logits.argmax(1) == partner).float().mean().item()


def _caption_contrast(images: Tensor, texts: Tensor, scale: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss; captions that say the same share the target between them."""
    logits = scale * images @ texts.T
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (cross_entropy(logits, target) + cross_entropy(logits.T, target))


def loss(work: Path, modules: Modules, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
    """The sum of the three losses over `2 * draw.size` pictures."""
    clip: Any = modules["clip"]
    heads = cast(nn.ModuleDict, modules["heads"])
    pictures, labels, all_tokens = _data(work)
    numbers = drawn_pairs(len(pictures), draw)
    pixels = augmented_pairs(pictures[numbers], draw, strength=0.25)
    variant = torch.cat([draw.integers(0, all_tokens.shape[1]), draw.integers(0, all_tokens.shape[1])]).numpy()
    tokens = torch.from_numpy(all_tokens[numbers, variant].astype(np.int64))
    images, texts = image_embeddings(clip, pixels), text_embeddings(clip, tokens)
    scale = clip.logit_scale.float().exp().clamp(max=60)
    captions = _caption_contrast(images, texts, scale, tokens)
    instances, found = instance_contrast(images, torch.from_numpy(labels["instance"][numbers]), TEMPERATURE)
    attributes = torch.zeros(())
    for name, head in heads.items():
        truth = torch.from_numpy(labels[name][numbers].astype(np.int64))
        said = truth >= 0
        for embeddings, weight in ((images, 1.0), (texts, 0.5)):
            # Captions leave some of it out; the heads on the text then learn what is usual, at half the weight.
            logits = head((embeddings[said] * 8).to(clip.dtype)).float()
            attributes = attributes + weight * cross_entropy(logits, truth[said]) / len(heads)
    total = captions + 0.5 * instances + 0.5 * attributes
    figures = {"captions": captions.item(), "instances": instances.item(), "partner_found": found}
    return total, figures | {"attributes": attributes.item(), "scale": scale.item()}


def image_loss(work: Path, modules: Modules, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
    """Captions and instances as before, and the nouns: a picture against "a photo of a <noun>" for every noun.

    Scene and style alone tell most captions of a batch apart; the last term asks for the thing.
    """
    clip: Any = modules["clip"]
    data = open_judge_data(work)
    numbers = drawn_pairs(len(data.labels), draw)
    pixels = augmented_pairs(data.at(data.pictures, numbers), draw, strength=0.5)
    variants = torch.cat([draw.integers(0, CAPTIONS_EACH), draw.integers(0, CAPTIONS_EACH)]).numpy()
    tokens = data.at(data.tokens, numbers)[np.arange(len(numbers)), variants]
    captions = torch.from_numpy(tokens.astype(np.int64))
    labels = data.labels[numbers]
    with torch.no_grad():
        texts, nouns = text_embeddings(clip, captions), text_embeddings(clip, _noun_tokens(work))
    images = image_embeddings(clip, pixels)
    scale = clip.logit_scale.float().exp().clamp(max=60)
    matched = _caption_contrast(images, texts, scale, captions)
    instances, found = instance_contrast(images, torch.from_numpy(labels["instance"].copy()), TEMPERATURE)
    alone = torch.from_numpy(labels["companion"] < 0)
    truth = torch.from_numpy(labels["noun"].astype(np.int64))[alone]
    logits = (scale * images @ nouns.T)[alone]
    named = cross_entropy(logits, truth)
    figures = {"captions": matched.item(), "instances": instances.item(), "partner_found": found, "nouns": named.item()}
    right = (logits.argmax(1) == truth).float().mean().item()
    return matched + 0.5 * instances + named, figures | {"noun_right": right, "scale": scale.item()}


@lru_cache(maxsize=1)
def _noun_tokens(work: Path) -> Tensor:
    """Tokens of "a photo of a <noun>", int64 `[nouns, 77]`."""
    return torch.from_numpy(encode(load_tokenizer(work), [ordinary(noun, None, "photo") for noun in NOUN_NAMES]))


TEXT_PHASE = Schedule(
    steps=2600, batch_size=BATCH // 2, learning_rate=1.2e-3, warm_up=100, cool_down=500, weight_decay=0.02,
    betas=(0.9, 0.98), ema_decay=0.997, seed=11,
)  # fmt: skip
IMAGE_PHASE = Schedule(
    steps=7_000, batch_size=BATCH // 2, learning_rate=8e-4, warm_up=50, cool_down=2_500, weight_decay=0.05,
    betas=(0.9, 0.98), ema_decay=0.998, seed=12,
)  # fmt: skip


def train_text(work: Path, minutes: float | None = None) -> bool:
    """The first phase; writes `work/text_encoder` when it is done and says whether it is."""
    tokenizer = load_tokenizer(work)
    modules = train(
        partial(build, len(tokenizer)), partial(loss, work), TEXT_PHASE, work / "clip" / "text-phase", minutes=minutes
    )
    if modules is None:
        return False
    clip: Any = modules["clip"]
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(_text_tower(clip, text_encoder))
    text_encoder.save_pretrained(work / "text_encoder")
    clip.save_pretrained(work / "clip" / "first")
    return True


def _text_tower(clip: CLIPModel, like: CLIPTextModel) -> Mapping[str, Tensor]:
    """The text tower's tensors by the names `CLIPTextModel` gives them."""
    tensors = clip.text_model.state_dict()
    wanted = like.state_dict()
    if set(tensors) == set(wanted):
        return tensors
    return {f"text_model.{name}": tensor for name, tensor in tensors.items()}


def train_images(work: Path, minutes: float | None = None) -> bool:
    """The second phase; writes `work/clip/model` when it is done and says whether it is."""
    modules = train(
        partial(build_images, work / "clip" / "first"),
        partial(image_loss, work),
        IMAGE_PHASE,
        work / "clip" / "image-phase",
        minutes=minutes,
    )
    if modules is None:
        return False
    clip: Any = modules["clip"]
    clip.save_pretrained(work / "clip" / "model")
    return True
