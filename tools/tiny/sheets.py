"""Contact sheets for the docs: the world, the held-out concepts, the autoencoder, and uncurated samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tools.tiny.canvas import grid
from tools.tiny.captions import ordinary
from tools.tiny.concepts import held_out
from tools.tiny.dataset import NOUN_NAMES, draw_pair, training_art, wardrobe_of
from tools.tiny.export import load_pipeline
from tools.tiny.measure import GUIDANCE, concept_pictures, reconstructed, sample
from tools.tiny.render import render
from tools.tiny.scenes import SCENES
from tools.tiny.styles import STYLES
from tools.tiny.truth import references
from tools.tiny.vae import scaled


def world(work: Path) -> Image.Image:
    """Training pictures as they come, 96 of them; neighbours in a row show one instance."""
    wardrobe = wardrobe_of(work)
    art, rng = training_art(wardrobe), np.random.default_rng(91)
    return grid([render(d, wardrobe, rng) for _ in range(48) for d in draw_pair(art, rng)], 12)


def concepts(work: Path) -> Image.Image:
    """The references of the twenty held-out concepts, two concepts a row."""
    wardrobe = wardrobe_of(work)
    return grid([picture for concept in held_out() for _, picture in references(concept, wardrobe)], 10)


def autoencoder(work: Path) -> Image.Image:
    """Held-out concepts in new scenes, each row above its reconstruction."""
    wardrobe = wardrobe_of(work)
    originals = np.stack([concept_pictures(c, wardrobe, 0, 1, photos=True)[0] for c in held_out()])
    pipeline = load_pipeline(work)
    made = ((reconstructed(pipeline, scaled(originals)) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [part for k in (0, 10) for part in (*originals[k : k + 10], *made[k : k + 10])]
    return grid(rows, 10)


def objects_by_scene() -> list[str]:
    """Every noun in eight scenes."""
    return [ordinary(noun, scene, "photo") for noun in NOUN_NAMES for scene in list(SCENES)[:16:2]]


def objects_by_style() -> list[str]:
    """Every second noun in all styles, each with a scene of its own."""
    scenes = list(SCENES)
    nouns = NOUN_NAMES[::2]
    return [ordinary(noun, scenes[k % 16], style) for k, noun in enumerate(nouns) for style in STYLES]


def samples(work: Path, prompts: Sequence[str], columns: int = 8, seed: int = 5) -> Image.Image:
    """One picture a prompt, whatever it came to."""
    return grid(list(sample(load_pipeline(work), prompts, seed, GUIDANCE)), columns)


def draw_all(work: Path, folder: Path) -> None:
    """Write every sheet to `folder` as `tiny-<what>.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sheet in (
        ("world", world(work)),
        ("concepts", concepts(work)),
        ("autoencoder", autoencoder(work)),
        ("scenes", samples(work, objects_by_scene())),
        ("styles", samples(work, objects_by_style())),
    ):
        sheet.save(folder / f"tiny-{name}.png", optimize=True)
