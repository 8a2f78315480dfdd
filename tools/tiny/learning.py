"""Before and after: what the three stages make of a held-out concept, beside what a perfect method would."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from attnbooth_cli.engine.generation import generate
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.methods import STAGE_NAMES
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.training import train
from tools.tiny.canvas import grid
from tools.tiny.concepts import Concept, held_out
from tools.tiny.dataset import wardrobe_of
from tools.tiny.export import load_pipeline
from tools.tiny.measure import GUIDANCE, sample
from tools.tiny.truth import concept_images, references, true_picture

SHOWN = ("rocket", "frog")
"""Tuning concepts: what is shown may be looked at before the results on the test concepts are."""
PROMPTS = (
    "a photo of a {}",
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "an oil painting of a {} in the forest",
    "a drawing of a {} in the city",
    "a pencil sketch of a {} at sunset",
    "a watercolor of a {} on the beach",
    "a neon sign of a {} in space",
)


def before_and_after(concept: Concept, work: Path, model: str, root: Path) -> tuple[Image.Image, float]:
    """Train `concept` with `--fast` and its base model's own schedule; a sheet and the seconds it took.

    The first row shows the references. Then a row for each of: the base model's category word, each stage, and the
    true pictures, each with the eight prompts at the same seeds.
    """
    shutil.rmtree(root, ignore_errors=True)
    images = concept_images(concept, wardrobe_of(work), root.with_name(f"{root.name}-images"))
    init(root, images=[images], category=concept.thing.noun, model=model)
    started = time.monotonic()
    train(root, options=TrainOptions(fast=True))
    seconds = time.monotonic() - started
    own = [picture for _, picture in references(concept, wardrobe_of(work))]
    rows = [*own, *[np.full_like(own[0], 255)] * (len(PROMPTS) - len(own))]
    rows += list(sample(load_pipeline(work), [prompt.format(concept.thing.noun) for prompt in PROMPTS], 0, GUIDANCE))
    for stage in STAGE_NAMES:
        for number, prompt in enumerate(PROMPTS):
            made = generate(root, [prompt], seed=number, stage=stage, guidance=GUIDANCE)
            rows.append(np.asarray(Image.open(made.pictures[0].path).convert("RGB")))
    rows += [true_picture(concept, prompt, wardrobe_of(work)) for prompt in PROMPTS]
    return grid(rows, len(PROMPTS)), seconds


def draw(work: Path, model: str, folder: Path, say: Callable[[str], None]) -> None:
    """The sheets of `SHOWN`, as `tiny-learned-<name>.png` in `folder`."""
    for concept in held_out():
        if concept.name in SHOWN:
            sheet, seconds = before_and_after(concept, work, model, work / "learning" / concept.name)
            sheet.save(folder / f"tiny-learned-{concept.name}.png", optimize=True)
            say(f"{concept.name}: learned in {seconds:.0f} s")
