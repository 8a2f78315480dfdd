"""What the scores are worth, on held-out concepts whose true pictures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.base_models import bundled_folder
from attnbooth_cli.engine.evaluation import evaluate
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.judges import ClipJudge, load_clip
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.question import EvalOptions
from attnbooth_cli.engine.training import train
from benchmarks.calibration import CONCEPTS, category_of, true_pictures
from benchmarks.paper_table.run import PROMPTS, opened

HELD_OUT = sorted(path for path in CONCEPTS.iterdir() if path.is_dir())
LEARNED = "cat"
SHORT = (
    *(f"train.{stage}.batch_size=4" for stage in ("embedding", "attention", "unet")),
    "train.embedding.steps=10", "train.attention.steps=30", "train.unet.steps=60", "train.unet.learning_rate=1e-4",
)  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> ClipJudge:
    return load_clip("tiny", bundled_folder(), torch.device("cpu"))


def features(judge: ClipJudge, pictures: list[Path]) -> np.ndarray:
    return np.asarray(judge.features(opened(pictures)).numpy(), np.float64)


def references(judge: ClipJudge, concept: Path) -> np.ndarray:
    return features(judge, sorted((concept / "images").iterdir()))


def test_true_pictures_score_far_above_those_of_another_concept(judge: ClipJudge) -> None:
    """Whatever scene and style the prompts ask for; by the bundled judge, for every held-out concept."""
    assert len(HELD_OUT) >= 12
    true = {concept: features(judge, true_pictures(concept)) for concept in HELD_OUT}
    for concept, other in zip(HELD_OUT, HELD_OUT[1:] + HELD_OUT[:1], strict=True):
        photos = references(judge, concept)
        own, others = (float(scores.identity(photos, true[which]).mean()) for which in (concept, other))
        assert own > others + 0.1, concept.name


def test_a_method_rises_far_above_the_untuned_model_and_true_pictures_above_it(
    judge: ClipJudge, tmp_path: Path, few_steps: None
) -> None:
    """A short training and `eval` (in two steps a picture) on a concept nothing has seen.

    Identity alone does not bound a method: one that neglects a style looks more like the photos than the true picture
    in that style does. The two numbers together do.
    """
    concept = next(path for path in HELD_OUT if path.name == LEARNED)
    root = tmp_path / "p"
    init(root, images=[concept / "images"], category=category_of(concept), model="tiny")
    train(root, options=TrainOptions(settings=SHORT))
    found = evaluate(root, EvalOptions(n=1, baseline=True, drift=False)).report
    untuned = found["untuned"]["identity"]["mean"]
    rows = features(judge, true_pictures(concept))
    truth = float(scores.identity(references(judge, concept), rows).mean())
    assert found["identity"] - untuned > 0.5 * (truth - untuned)
    texts = np.asarray(judge.texts([prompt.format(category_of(concept)) for prompt in PROMPTS]).numpy(), np.float64)
    true_text = float(scores.text(texts, rows[:, None]).mean())
    assert found["identity"] + found["text"] < truth + true_text
