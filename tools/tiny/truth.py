"""True pictures of the held-out concepts: what they look like, and what a prompt about one of them should show.

A concept's references are the pictures a method learns it from. `depicted` reads a prompt of the grammar back into a
depiction, so that any prompt about a concept can be rendered as a perfect method would: the ceiling of every metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from attnbooth_cli.engine.prompts import COMPLEX, EVALUATION
from tools.tiny.captions import CLOSE_UP, RELATIONS
from tools.tiny.concepts import Concept, held_out, withheld_art
from tools.tiny.depiction import Depiction, Thing
from tools.tiny.instances import Instance, Wardrobe
from tools.tiny.objects import COLOURS, NOUNS, SIZES
from tools.tiny.render import render
from tools.tiny.scenes import ALL_SCENES
from tools.tiny.styles import STYLES

REFERENCES = 5
"""Pictures of a concept that a method learns it from."""
REFERENCE_SCENES = (
    "wooden floor", "grass", "white background", "brick wall", "road", "desert", "mountains", "gray background",
)  # fmt: skip
"""Where references are taken, five scenes a concept; the other sixteen are new to whoever saw only those."""


PROMPTS = tuple(prompt for sets in (EVALUATION, COMPLEX) for its in sets["tiny"].values() for prompt in its)
"""Prompts whose true pictures are exported: the engine's 24 and its 12 complex ones, in the world's own words."""
COMPANION_ART = ("noto", "fluent-flat", "twemoji")
"""Where a second thing that a prompt names gets its looks from."""


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng((71, *key))


def references(concept: Concept, wardrobe: Wardrobe) -> list[tuple[str, np.ndarray]]:
    """The concept's reference pictures with their scenes: photos, each of another scene, uint8 `[64, 64, 3]`."""
    number = held_out().index(concept)
    rng = _rng(number)
    scenes = [REFERENCE_SCENES[k] for k in rng.permutation(len(REFERENCE_SCENES))[:REFERENCES]]
    return [(scene, render(Depiction(concept.thing, scene, "photo"), wardrobe, rng)) for scene in scenes]


def _found(prompt: str, phrases: Mapping[str, Iterable[str]]) -> str | None:
    """The name whose longest phrase occurs in `prompt` as whole words."""
    hits = [
        (len(phrase), name)
        for name, its in phrases.items()
        for phrase in its
        if re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", prompt)
    ]
    return max(hits)[1] if hits else None


def depicted(concept: Concept, prompt: str, elsewhere: str = "white background") -> Depiction:
    """What `prompt`, with `{}` for the concept, should show: scene `elsewhere` where it names none, a photo
    where it names no style; a colour before `{}` repaints the concept's base, a size resizes it, and a thing beside
    it stands beside it.

    Raises `ValueError` if `{}` is not in the prompt.
    """
    if "{}" not in prompt:
        raise ValueError(f"no {{}} in {prompt!r}")
    scene = _found(prompt, {name: scene.phrases for name, scene in ALL_SCENES.items()})
    openings = {name: [*style.openings, *([style.manner] if style.manner else [])] for name, style in STYLES.items()}
    style = _found(prompt, {name: its for name, its in openings.items() if name != "photo"})
    thing = concept.thing
    before = prompt.split("{}")[0].split()
    if before and before[-1] in COLOURS:
        colour = before.pop()
        thing = replace(thing, colour=colour, instance=replace(thing.instance, base=COLOURS[colour]))
    size = next((name for name, words in SIZES.items() if before and before[-1] in words), None)
    if prompt.startswith(CLOSE_UP):
        size = "large"
    companion = _companion(prompt)
    return Depiction(thing, scene or elsewhere, style or "photo", None if companion else size, companion)


def _companion(prompt: str) -> Thing | None:
    """The thing that `prompt` names beside the concept, in the looks of an art that training uses too."""
    nouns, colours = ("|".join(map(re.escape, sorted(words, key=len, reverse=True))) for words in (NOUNS, COLOURS))
    found = re.search(rf"\{{\}} (?:{'|'.join(RELATIONS)}) (?:an?|the) (?:({colours}) )?({nouns})\b", prompt)
    if found is None:
        return None
    colour, noun = found.groups()
    choices = (f"{art_set}/{name}" for name in NOUNS[noun] for art_set in COMPANION_ART)
    art = next(art for art in choices if art not in withheld_art())
    return Thing(noun, Instance(art, base=COLOURS[colour] if colour else None), colour)


def true_picture(concept: Concept, prompt: str, wardrobe: Wardrobe, seed: int = 0) -> np.ndarray:
    """A rendering of `prompt` about `concept`; `seed` varies pose and scene."""
    rng = _rng(1, held_out().index(concept), seed, *prompt.encode())
    return render(depicted(concept, prompt), wardrobe, rng)


def concept_images(concept: Concept, wardrobe: Wardrobe, folder: Path) -> Path:
    """The concept's references as files `<k>-<scene>.png` in `folder`, as a person would have them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for number, (scene, pixels) in enumerate(references(concept, wardrobe), 1):
        Image.fromarray(pixels).save(folder / f"{number}-{scene.replace(' ', '-')}.png", optimize=True)
    return folder


def export_concepts(wardrobe: Wardrobe, prompts: Iterable[str], benchmark: Path, example: Path) -> None:
    """Write the test and tuning concepts to `benchmark` and the examples to `example`.

    `<name>/images/<k>-<scene>.png` are the references, `<name>/truth/<k>.png` the true pictures of `prompts` in
    their order. An example is `<noun>/<k>-<scene>.png`, references only.
    """
    listed = list(prompts)
    for concept in held_out():
        is_example = concept.split == "example"
        folder = example / concept.thing.noun if is_example else benchmark / concept.split / concept.name / "images"
        concept_images(concept, wardrobe, folder)
        if not is_example:
            truth = folder.parent / "truth"
            truth.mkdir(exist_ok=True)
            for number, prompt in enumerate(listed, 1):
                Image.fromarray(true_picture(concept, prompt, wardrobe)).save(truth / f"{number}.png", optimize=True)
