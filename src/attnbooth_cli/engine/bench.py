"""What an evaluation works with: a sitting, judges, and their features as they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attnbooth_cli.engine.base_models import resolve_judge
from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.feature_cache import features
from attnbooth_cli.engine.judges import ClipJudge, PictureJudge, load_clip, load_dino
from attnbooth_cli.engine.model_files import DINO
from attnbooth_cli.engine.question import EvalOptions
from attnbooth_cli.engine.scorecard import Wordings, wordings
from attnbooth_cli.engine.scores import Array
from attnbooth_cli.engine.sitting import Sitting, open_sitting
from attnbooth_cli.events import Emit, Warned
from attnbooth_cli.project import pictures
from attnbooth_cli.project.project import Project


@dataclass(frozen=True)
class Bench:
    """What every moment of one run is scored with.

    Attributes:
        references: The pictures the concept was trained on.
        held_out: Pictures of the concept that training never saw.
    """

    sitting: Sitting
    texts: Wordings
    references: tuple[Path, ...]
    held_out: tuple[Path, ...]
    clip: ClipJudge
    dino: PictureJudge | None

    @property
    def project(self) -> Project:
        """Whose concept is scored."""
        return self.sitting.project

    def features(self, judge: PictureJudge, paths: Sequence[Sequence[Path]]) -> Array:
        """Of generated pictures, as many of each prompt: [p, n, d]."""
        folder = self.project.evaluation / "features"
        found = as_array(features(folder, judge, [path for row in paths for path in row]))
        return found.reshape(len(paths), -1, judge.width)

    def training_features(self, judge: PictureJudge, paths: Sequence[Path], alteration: str | None = None) -> Array:
        """Of pictures of the concept, [n, d]."""
        folder = self.project.evaluation / "features"
        return as_array(features(folder, judge, paths, alteration, training=True))


def open_bench(
    root: Path | str, options: EvalOptions, emit: Emit, card_of: Callable[[Project], Card], pool: ComponentPool
) -> Bench:
    """Opens a project, resolves what is asked, and loads the judges.

    Args:
        card_of: Finds the card of what is scored.
        pool: Where the base model is kept, if it is.

    Raises:
        InputError: a training picture changed; or as `open_sitting`.
        BaseModelError: the base model or a judge cannot be had, or other weights stand in the base model's place.
        DamagedError: files of the project or of a judge cannot be read.
    """
    sitting = open_sitting(root, options, emit, card_of, pool)
    question, device = sitting.question, sitting.device
    held_out = sitting.project.held_out

    def say(text: str) -> None:
        emit(Warned(text))

    references = sitting.training_pictures()
    there = held_out.is_dir() and any(path.suffix.lower() in pictures.EXTENSIONS for path in held_out.iterdir())
    kept_out = tuple(picture.path for picture in pictures.survey([held_out]).pictures) if there else ()
    if {_shown(path) for path in references} & {_shown(path) for path in kept_out}:
        say(f"{held_out} has a copy of a training picture: its score is not held out")
    folder = resolve_judge(question.judge, download=True, say=say)
    dino = None
    if question.dino:
        dino = load_dino(question.dino, resolve_judge(question.dino, kind=DINO, download=True, say=say), device)
    return Bench(
        sitting,
        wordings(question, sitting.card.placeholder),
        references,
        kept_out,
        load_clip(question.judge, folder, device, question.protocol.preprocessing),
        dino,
    )


def _shown(path: Path) -> bytes:
    """What a picture file shows, whatever its form."""
    picture = pictures.load(path)
    return repr(picture.size).encode() + picture.tobytes()


def as_array(tensor: torch.Tensor) -> Array:
    """Features as scores take them: float64, of the same shape."""
    return np.asarray(tensor.numpy(), np.float64)
