"""What the model card reports: every bar of the base model, measured on held-out concepts and by independent judges.

The true renderings, reconstructions and other instances are scored beside what is judged, so that a number can be read:
a judge that rates a picture against itself and a stranger alike says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel

from benchmarks.judges import Classifier, judged, load_classifier, load_instance_encoder
from tools.tiny.captions import ordinary
from tools.tiny.clip import image_embeddings, text_embeddings
from tools.tiny.concepts import Concept, held_out
from tools.tiny.dataset import (
    COLOUR_NAMES,
    NOUN_NAMES,
    STYLE_NAMES,
    draw_scene,
    draw_style,
    training_art,
    wardrobe_of,
)
from tools.tiny.depiction import Depiction, Thing
from tools.tiny.export import load_pipeline
from tools.tiny.instances import Wardrobe, draw_instance
from tools.tiny.render import render
from tools.tiny.tokenizer import encode, load_tokenizer
from tools.tiny.truth import REFERENCE_SCENES, references
from tools.tiny.vae import psnr, scaled

SEEDS = (0, 1, 2)
PROMPTS = 504
SAMPLING_STEPS = 25
GUIDANCE = 4.0
"""What the entry of `tiny` in the engine says."""

Embed = Callable[[Tensor], Tensor]
"""Pictures float32 `[b, 3, 64, 64]` in [-1, 1] to unit vectors `[b, d]`."""


def _pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    return scaled(np.stack(pictures))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, least and greatest over the seeds."""
    return {
        "mean": round(float(np.mean(values)), 4),
        "min": round(float(min(values)), 4),
        "max": round(float(max(values)), 4),
    }


# --- prompts and the classifier


def draw_prompts(seed: int, wardrobe: Wardrobe, count: int = PROMPTS) -> list[tuple[str, Depiction]]:
    """Prompts in the plain wording with a depiction of each: nouns and styles in turn, scenes as the world draws them.

    A third name a colour. Every style is asked for equally often, though training shows photos most.
    """
    rng = np.random.default_rng((81, seed))
    art = training_art(wardrobe)
    drawn = []
    for number in range(count):
        noun = NOUN_NAMES[number % len(NOUN_NAMES)]
        style = STYLE_NAMES[number // len(NOUN_NAMES) % len(STYLE_NAMES)]
        scene = draw_scene(rng)
        colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))] if rng.random() < 1 / 3 else None
        instance = draw_instance(art[noun][rng.integers(len(art[noun]))], colour, rng)
        described = noun if colour is None else f"{colour} {noun}"
        drawn.append((ordinary(described, scene, style), Depiction(Thing(noun, instance, colour), scene, style)))
    return drawn


def sample(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int, guidance: float, steps: int = SAMPLING_STEPS
) -> np.ndarray:
    """One picture a prompt with DPM-Solver++, uint8 `[n, 64, 64, 3]`; picture i starts from seed `1000 seed + i`."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(prompts), 36):
        part = list(prompts[start : start + 36])
        generators = [torch.Generator().manual_seed(1000 * seed + start + k) for k in range(len(part))]
        made.append(
            pipeline(
                part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
            ).images
        )
    return (np.concatenate(made) * 255 + 0.5).astype(np.uint8)


def agreement(classifier: Classifier, pictures: np.ndarray, depictions: Sequence[Depiction]) -> dict[str, float]:
    """How often the classifier sees what was asked for: each attribute, and object, scene and style together."""
    outputs: list[Any] = judged(classifier, scaled(pictures))
    right: dict[str, np.ndarray] = {}
    asked: dict[str, list[str | None]] = {
        "noun": [depiction.thing.noun for depiction in depictions],
        "colour": [depiction.thing.colour for depiction in depictions],
        "scene": [depiction.scene for depiction in depictions],
        "style": [depiction.style for depiction in depictions],
    }
    for attribute, wanted in asked.items():
        seen = torch.cat([output[attribute] for output in outputs]).argmax(1).numpy()
        names = classifier.labels[attribute]
        right[attribute] = np.array([names[k] == name for k, name in zip(seen, wanted, strict=True)])
    named = np.array([colour is not None for colour in asked["colour"]])
    # Sepia, sketch and neon keep no colour, so a colour asked for there cannot be seen.
    tinted = named & np.array([style not in ("sepia", "sketch", "neon") for style in asked["style"]])
    photos = np.array([style == "photo" for style in asked["style"]])
    return {
        "object": float(right["noun"].mean()),
        "scene": float(right["scene"].mean()),
        "style": float(right["style"].mean()),
        "all three": float((right["noun"] & right["scene"] & right["style"]).mean()),
        "colour": float(right["colour"][tinted].mean()),
        "object, photos": float(right["noun"][photos].mean()),
    }


def prompts_followed(
    work: Path, pipeline: StableDiffusionPipeline, guidance: float, seeds: Sequence[int] = SEEDS, count: int = PROMPTS
) -> dict[str, Any]:
    """The classifier's verdict on generated pictures and on true renderings of the same prompts."""
    classifier, wardrobe = load_classifier(work / "judges"), wardrobe_of(work)
    rows: dict[str, list[dict[str, float]]] = {"generated": [], "real": []}
    for seed in seeds:
        drawn = draw_prompts(seed, wardrobe, count)
        depictions = [depiction for _, depiction in drawn]
        rng = np.random.default_rng((82, seed))
        real = np.stack([render(depiction, wardrobe, rng) for depiction in depictions])
        rows["real"].append(agreement(classifier, real, depictions))
        made = sample(pipeline, [prompt for prompt, _ in drawn], seed, guidance)
        rows["generated"].append(agreement(classifier, made, depictions))
    table = {kind: {key: spread([row[key] for row in its]) for key in its[0]} for kind, its in rows.items()}
    chance = {"object": 1 / len(NOUN_NAMES), "scene": 0.05, "style": 1 / len(STYLE_NAMES), "colour": 0.1}
    return {
        "guidance": guidance,
        "steps": SAMPLING_STEPS,
        "prompts": count,
        "seeds": list(seeds),
        "chance": chance,
    } | table


# --- held-out concepts: autoencoder, zero-shot, instances


def concept_pictures(concept: Concept, wardrobe: Wardrobe, seed: int, count: int, *, photos: bool) -> list[np.ndarray]:
    """The concept in scenes its references do not show; photos, or in any style."""
    rng = np.random.default_rng((83, seed, held_out().index(concept)))
    pictures: list[np.ndarray] = []
    while len(pictures) < count:
        scene, style = draw_scene(rng), "photo" if photos else draw_style(rng)
        if scene not in REFERENCE_SCENES:
            pictures.append(render(Depiction(concept.thing, scene, style), wardrobe, rng))
    return pictures


@torch.inference_mode()
def reconstructed(pipeline: StableDiffusionPipeline, pictures: Tensor) -> Tensor:
    """Pictures through the autoencoder, from the posterior's mean."""
    parts = [pipeline.vae.decode(pipeline.vae.encode(part).latent_dist.mean).sample for part in pictures.split(50)]
    return torch.cat(parts).clamp(-1, 1)


def autoencoder(work: Path, pipeline: StableDiffusionPipeline, embeds: dict[str, Embed]) -> dict[str, Any]:
    """PSNR on pictures of held-out concepts, by seed; and how much of the identity score a reconstruction keeps.

    Identity is the mean cosine between different pictures of one concept; kept is the score of reconstructions
    against the originals over the originals' among themselves.
    """
    wardrobe = wardrobe_of(work)
    decibels = []
    for seed in SEEDS:
        originals = _pixels([p for c in held_out() for p in concept_pictures(c, wardrobe, seed, 8, photos=True)])
        errors = (reconstructed(pipeline, originals) - originals).square().mean((1, 2, 3))
        decibels.append(float(psnr(errors).mean()))
    own = _pixels([picture for concept in held_out() for _, picture in references(concept, wardrobe)])
    made = reconstructed(pipeline, own)
    errors = (made - own).square().mean((1, 2, 3))
    kept = {}
    for name, embed in embeds.items():
        first, second = embed(own), embed(made)
        kept[name] = round(_identity(second, first) / _identity(first, first), 4)
    return {
        "psnr on new pictures": spread(decibels),
        "psnr on references": round(float(psnr(errors).mean()), 2),
        "identity kept": kept,
    }


def _identity(first: Tensor, second: Tensor, group: int = 5) -> float:
    """Mean cosine between different pictures of a group: picture i of `first` with j of `second`, i != j."""
    apart = ~torch.eye(group, dtype=torch.bool)
    cosines = [
        (a @ b.T)[apart].mean() for a, b in zip(first.split(group), second.split(group), strict=True)
    ]  # each [group, group]
    return float(torch.stack(cosines).mean())


def zero_shot(work: Path, clip: CLIPModel, count: int = 20) -> dict[str, Any]:
    """How often the nearest caption "a photo of a <noun>" is the held-out concept's own, on its photos."""
    wardrobe = wardrobe_of(work)
    prompts = [ordinary(noun, None, "photo") for noun in NOUN_NAMES]
    with torch.inference_mode():
        texts = text_embeddings(clip, torch.from_numpy(encode(load_tokenizer(work), prompts)))
    truth = torch.tensor([NOUN_NAMES.index(concept.thing.noun) for concept in held_out() for _ in range(count)])
    scores, by_noun = [], torch.zeros(len(NOUN_NAMES))
    for seed in SEEDS:
        pictures = [p for c in held_out() for p in concept_pictures(c, wardrobe, seed, count, photos=True)]
        right = (clip_embed(clip)(_pixels(pictures)) @ texts.T).argmax(1) == truth
        scores.append(float(right.float().mean()))
        by_noun.index_add_(0, truth, right.float() / len(SEEDS))
    worst = {
        concept.name: round(float(by_noun[NOUN_NAMES.index(concept.thing.noun)]) / count, 2) for concept in held_out()
    }
    return {"object": spread(scores), "chance": round(1 / len(NOUN_NAMES), 3), "by concept": worst}


def clip_embed(clip: CLIPModel) -> Embed:
    """The bundled judge's image embeddings."""

    @torch.inference_mode()
    def embed(pictures: Tensor) -> Tensor:
        return torch.cat([image_embeddings(clip, part) for part in pictures.split(200)])

    return embed


def instance_embed(work: Path) -> Embed:
    """The independent instance encoder's embeddings."""
    encoder = load_instance_encoder(work / "judges")

    def embed(pictures: Tensor) -> Tensor:
        parts: list[Any] = judged(encoder, pictures)
        return torch.cat(parts)

    return embed


def other_instances(concept: Concept, wardrobe: Wardrobe, seed: int, count: int, *, same_art: bool) -> list[np.ndarray]:
    """Other instances of the concept's category, any scene and style: the same drawing in other paint, or other art."""
    rng = np.random.default_rng((84, seed, held_out().index(concept), int(same_art)))
    noun = concept.thing.noun
    choice = [art for art, its in wardrobe.art.items() if its == noun and art not in concept.withheld]
    pictures = []
    for _ in range(count):
        art = concept.thing.instance.art if same_art else choice[rng.integers(len(choice))]
        instance = draw_instance(art, COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))], rng)
        thing = Thing(noun, instance if same_art or rng.random() < 0.6 else replace(instance, base=None))
        pictures.append(render(Depiction(thing, draw_scene(rng), draw_style(rng)), wardrobe, rng))
    return pictures


def ranking(work: Path, embeds: dict[str, Embed], count: int = 20) -> dict[str, Any]:
    """How often a new picture of a concept, any style, lies nearer its references than another instance does."""
    wardrobe = wardrobe_of(work)
    table: dict[str, Any] = {}
    for name, embed in embeds.items():
        wins: dict[str, list[float]] = {"other art": [], "same art, other paint": [], "photos only, other art": []}
        for seed in SEEDS:
            shares: dict[str, list[float]] = {key: [] for key in wins}
            for concept in held_out():
                centre = embed(_pixels([picture for _, picture in references(concept, wardrobe)])).mean(0)
                for key, its in shares.items():
                    own = concept_pictures(concept, wardrobe, seed, count, photos=key.startswith("photos"))
                    others = other_instances(concept, wardrobe, seed, count, same_art=key.startswith("same"))
                    near, far = embed(_pixels(own)) @ centre, embed(_pixels(others)) @ centre
                    its.append(float((near[:, None] > far[None]).float().mean()))
            for key, its in shares.items():
                wins[key].append(float(np.mean(its)))
        table[name] = {key: spread(values) for key, values in wins.items()}
    return table


def calibration(
    work: Path, pipeline: StableDiffusionPipeline, clip: CLIPModel, embeds: dict[str, Embed]
) -> dict[str, Any]:
    """Mean cosine to a concept's references of the things a score lies between, and the bundled judge's text score."""
    wardrobe = wardrobe_of(work)
    table: dict[str, Any] = {}
    concepts = held_out()
    own = _pixels([picture for concept in concepts for _, picture in references(concept, wardrobe)])
    rows: dict[str, Tensor] = {
        "reconstructions of the references": reconstructed(pipeline, own),
        "true pictures, new scenes": _pixels(
            [p for c in concepts for p in concept_pictures(c, wardrobe, 0, 20, photos=True)]
        ),
        "true pictures, new scenes and styles": _pixels(
            [p for c in concepts for p in concept_pictures(c, wardrobe, 0, 20, photos=False)]
        ),
        "same art in other paint": _pixels(
            [p for c in concepts for p in other_instances(c, wardrobe, 0, 20, same_art=True)]
        ),
        "other instances of the category": _pixels(
            [p for c in concepts for p in other_instances(c, wardrobe, 0, 20, same_art=False)]
        ),
        "other objects": _pixels(
            [p for c in (*concepts[7:], *concepts[:7]) for p in concept_pictures(c, wardrobe, 0, 20, photos=True)]
        ),
    }
    for name, embed in embeds.items():
        base = embed(own)
        scores = {"references among themselves": round(_identity(base, base), 4)}
        for row, pictures in rows.items():
            embedded = embed(pictures)
            size = len(embedded) // len(concepts)
            if row.startswith("reconstructions"):
                scores[row] = round(_identity(embedded, base), 4)
            else:
                pairs = zip(base.split(5), embedded.split(size), strict=True)
                scores[row] = round(float(torch.stack([(a @ b.T).mean() for a, b in pairs]).mean()), 4)
        table[name] = scores
    return table | {"text": _text_calibration(work, clip)}


def _text_calibration(work: Path, clip: CLIPModel) -> dict[str, float]:
    """Cosine between true renderings of prompts and their own, reworded and exchanged prompts."""
    wardrobe, embed = wardrobe_of(work), clip_embed(clip)
    drawn = draw_prompts(0, wardrobe)
    rng = np.random.default_rng(85)
    pictures = embed(_pixels([render(depiction, wardrobe, rng) for _, depiction in drawn]))
    with torch.inference_mode():
        prompts = [prompt for prompt, _ in drawn]
        texts = text_embeddings(clip, torch.from_numpy(encode(load_tokenizer(work), prompts)))
    cosines = pictures @ texts.T
    return {
        "true picture, its prompt": round(float(cosines.diagonal().mean()), 4),
        "true picture, another prompt": round(float(cosines[~torch.eye(len(drawn), dtype=torch.bool)].mean()), 4),
        "its prompt nearest of 504": round(float((cosines.argmax(1) == torch.arange(len(drawn))).float().mean()), 4),
    }


def write(work: Path, name: str, figures: dict[str, Any]) -> None:
    """`work/measured/<name>.json`."""
    folder = work / "measured"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def measure_all(work: Path, say: Callable[[str], None], guidance: float = GUIDANCE) -> None:
    """Every measurement of the model card, each written as soon as it is made."""
    pipeline = load_pipeline(work)
    clip = CLIPModel.from_pretrained(work / "clip" / "model").eval()
    embeds = {"bundled judge": clip_embed(clip), "instance encoder": instance_embed(work)}
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "zero-shot": lambda: zero_shot(work, clip),
        "ranking": lambda: ranking(work, embeds),
        "autoencoder": lambda: autoencoder(work, pipeline, embeds),
        "calibration": lambda: calibration(work, pipeline, clip, embeds),
        "prompts": lambda: prompts_followed(work, pipeline, guidance),
    }
    for name, measurement in measurements.items():
        figures = measurement()
        write(work, name, figures)
        say(f"{name}: {json.dumps(figures)}")
