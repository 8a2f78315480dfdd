"""The captioned pictures everything is trained on.

Pictures come in pairs: number 2k and 2k + 1 show the same instance in two scenes and styles, which is what a judge of
identity learns from. A pair depends on (seed, split, k) alone, so chunks can be rendered anywhere and in any order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tools.tiny.art import load_sprites
from tools.tiny.canvas import SIDE
from tools.tiny.captions import caption
from tools.tiny.concepts import withheld_art
from tools.tiny.depiction import Depiction, Thing
from tools.tiny.instances import Wardrobe, draw_instance, draw_wild
from tools.tiny.objects import COLOURS, NOUNS
from tools.tiny.processes import each_done
from tools.tiny.render import render
from tools.tiny.scenes import ALL_SCENES, PLAIN, SCENES
from tools.tiny.styles import STYLES

SPLITS = {"train": 160_000, "validation": 2_000, "judges": 80_000}
"""Pictures in each split. Validation shows training art in other paint, scenes and poses.

The judges learn from `train` and from `judges`, where everything is painted and patterned at random: art no judge has
seen, in paint it has not seen, can only be known by its shape.
"""
CHUNK = 2_000
CAPTIONS_EACH = 2
NOUN_NAMES, COLOUR_NAMES, SCENE_NAMES, STYLE_NAMES = (
    list(NOUNS),
    list(COLOURS),
    list(ALL_SCENES),
    list(STYLES),
)

ATTRIBUTES = {"noun": NOUN_NAMES, "colour": COLOUR_NAMES, "scene": SCENE_NAMES, "style": STYLE_NAMES}
"""What a label says of a picture's main thing, by field: the names its indices stand for."""

LABELS = np.dtype(
    [("noun", "i2"), ("colour", "i2"), ("scene", "i2"), ("style", "i2"), ("companion", "i2"), ("instance", "i4")]
)
"""Indices into `NOUN_NAMES` and so on; -1 for no colour word and no companion.

`instance` tells instances apart: the pair's number for a painted one, and for one in its own colours, of which there
is only one, -1 minus the number of its art.
"""


@dataclass(frozen=True)
class Split:
    """A split, memory-mapped: `pictures` uint8 `[n, SIDE, SIDE, 3]`, `labels` `LABELS[n]`, `captions[n]`."""

    pictures: np.ndarray
    labels: np.ndarray
    captions: Sequence[Sequence[str]]


def draw_scene(rng: np.random.Generator) -> str:
    """A scene, or in a fifth of the pictures a plain background."""
    names = list(PLAIN if rng.random() < 0.2 else SCENES)
    return names[rng.integers(len(names))]


def draw_style(rng: np.random.Generator) -> str:
    """A style, by its weight."""
    weights = np.array([style.weight for style in STYLES.values()])
    return STYLE_NAMES[rng.choice(len(weights), p=weights / weights.sum())]


def _draw_thing(art_by_noun: dict[str, list[str]], rng: np.random.Generator, *, wild: bool) -> Thing:
    noun = NOUN_NAMES[rng.integers(len(NOUN_NAMES))]
    colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))] if rng.random() < 0.35 else None
    art = art_by_noun[noun][rng.integers(len(art_by_noun[noun]))]
    return Thing(noun, (draw_wild if wild else draw_instance)(art, colour, rng), colour)


def training_art(wardrobe: Wardrobe) -> dict[str, list[str]]:
    """What may be trained on: art by noun, without the held-out concepts' art."""
    kept = {art: noun for art, noun in wardrobe.art.items() if art not in withheld_art()}
    return {noun: [art for art, its in kept.items() if its == noun] for noun in NOUN_NAMES}


def draw_pair(
    art_by_noun: dict[str, list[str]], rng: np.random.Generator, *, wild: bool = False
) -> tuple[Depiction, Depiction]:
    """Two depictions of one training instance, or of one made for the judges."""
    thing = _draw_thing(art_by_noun, rng, wild=wild)

    def one() -> Depiction:
        companion = _draw_thing(art_by_noun, rng, wild=wild) if rng.random() < 0.1 else None
        luck = rng.random()
        size = None if companion or luck > 0.16 else "small" if luck < 0.08 else "large"
        return Depiction(thing, draw_scene(rng), draw_style(rng), size, companion)

    return one(), one()


@lru_cache(maxsize=1)
def wardrobe_of(work: Path) -> Wardrobe:
    """The wardrobe of a work folder, read once a process."""
    return Wardrobe(load_sprites(work / "sprites.npz"))


def _label(depiction: Depiction, pair: int, art: list[str]) -> tuple[int, ...]:
    thing, companion = depiction.thing, depiction.companion
    painted = thing.instance.base is not None
    return (
        NOUN_NAMES.index(thing.noun),
        COLOUR_NAMES.index(thing.colour) if thing.colour else -1,
        SCENE_NAMES.index(depiction.scene),
        STYLE_NAMES.index(depiction.style),
        NOUN_NAMES.index(companion.noun) if companion else -1,
        pair if painted else -1 - art.index(thing.instance.art),
    )


def _render_chunk(job: tuple[Path, str, int, int]) -> None:
    """Render one chunk into its own files, unless they are there."""
    work, split, seed, number = job
    folder = work / "pictures" / f"{split}-chunks"
    done = folder / f"{number:04}.json"
    if done.exists():
        return
    wardrobe = wardrobe_of(work)
    art_by_noun, art = training_art(wardrobe), list(wardrobe.art)
    pictures, labels, captions = [], [], []
    for pair in range(number * CHUNK // 2, (number + 1) * CHUNK // 2):
        rng = np.random.default_rng((seed, list(SPLITS).index(split), pair))
        for depiction in draw_pair(art_by_noun, rng, wild=split == "judges"):
            pictures.append(render(depiction, wardrobe, rng))
            labels.append(_label(depiction, pair, art))
            captions.append([caption(depiction, rng) for _ in range(CAPTIONS_EACH)])
    np.save(folder / f"{number:04}-pictures.npy", np.stack(pictures))
    np.save(folder / f"{number:04}-labels.npy", np.array(labels, dtype=LABELS))
    part = done.with_suffix(".part")
    part.write_text(json.dumps(captions), "utf-8")
    part.replace(done)


def build_split(work: Path, split: str, seed: int, processes: int, say: Callable[[str], None]) -> None:
    """Render `split` into `work/pictures`; a second call continues, a third does nothing."""
    folder = work / "pictures"
    finished = folder / f"{split}-captions.json"
    if finished.exists():
        return
    parts = folder / f"{split}-chunks"
    parts.mkdir(parents=True, exist_ok=True)
    chunks = SPLITS[split] // CHUNK
    for count in each_done(_render_chunk, [(work, split, seed, number) for number in range(chunks)], processes):
        say(f"{split}: {count * CHUNK:,} of {SPLITS[split]:,} pictures")
    pictures = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", np.uint8, (SPLITS[split], SIDE, SIDE, 3))
    for number in range(chunks):
        pictures[number * CHUNK : (number + 1) * CHUNK] = np.load(parts / f"{number:04}-pictures.npy")
    pictures.flush()
    labels = [np.load(parts / f"{number:04}-labels.npy") for number in range(chunks)]
    np.save(folder / f"{split}-labels.npy", np.concatenate(labels))
    captions = [row for n in range(chunks) for row in json.loads((parts / f"{n:04}.json").read_text("utf-8"))]
    part = finished.with_suffix(".part")
    part.write_text(json.dumps(captions), "utf-8")
    part.replace(finished)
    shutil.rmtree(parts)


def open_split(work: Path, split: str) -> Split:
    """A rendered split. Raises `FileNotFoundError` before `build_split` has finished."""
    folder = work / "pictures"
    captions = json.loads((folder / f"{split}-captions.json").read_text("utf-8"))
    pictures = np.load(folder / f"{split}.npy", mmap_mode="r")
    return Split(pictures, np.load(folder / f"{split}-labels.npy"), captions)


@dataclass(frozen=True)
class JudgeData:
    """What judges learn from: the splits `train` and `judges`, numbered through. Tokens are int16 `[n, 2, 40]`."""

    pictures: tuple[np.ndarray, ...]
    tokens: tuple[np.ndarray, ...]
    labels: np.ndarray

    def at(self, parts: tuple[np.ndarray, ...], numbers: np.ndarray) -> np.ndarray:
        """Rows of `pictures` or `tokens`."""
        rows = np.empty((len(numbers), *parts[0].shape[1:]), parts[0].dtype)
        first = 0
        for part in parts:
            here = (numbers >= first) & (numbers < first + len(part))
            rows[here] = part[numbers[here] - first]
            first += len(part)
        return rows


@lru_cache(maxsize=1)
def open_judge_data(work: Path) -> JudgeData:
    """Both splits, once a process. Raises `FileNotFoundError` before they and their tokens are there."""
    folder = work / "pictures"
    names = ("train", "judges")
    labels = [np.load(folder / f"{name}-labels.npy") for name in names]
    labels[1]["instance"] += SPLITS["train"]  # pairs of another split are other instances
    return JudgeData(
        tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names),
        tuple(np.load(folder / f"{name}-tokens.npy", mmap_mode="r") for name in names),
        np.concatenate(labels),
    )
