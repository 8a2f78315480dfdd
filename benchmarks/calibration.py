"""What `eval`'s numbers mean on the bundled model: the same scores for pictures whose worth is known.

    python -m benchmarks.calibration --work build/calibration      # continues; about a minute a concept on one core

For every test concept of the bundled world, on the 24 prompts: its references among themselves and through the VAE; the
true pictures of the prompts, which no method can do better than; pictures by AttnDreamBooth (`train --fast`); the true
pictures of another concept; and what the untuned base model makes of the category's word. Results per concept go to
`WORK/calibration.jsonl`, the table to stdout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnbooth_cli.engine import scores
from attnbooth_cli.engine.base_models import bundled_folder, resolve
from attnbooth_cli.engine.evaluation import evaluate
from attnbooth_cli.engine.families import Components, load_components
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.judges import ClipJudge, load_clip
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.question import EvalOptions
from attnbooth_cli.engine.scorecard import summary
from attnbooth_cli.engine.training import train
from benchmarks.paper_table.run import PROMPTS, opened

CONCEPTS = Path(__file__).with_name("concepts") / "test"
ROWS = (
    "references among themselves",
    "references through the VAE",
    "true pictures of the prompts",
    "AttnDreamBooth, --fast",
    "untuned base model",
    "true pictures of another concept",
)

Features = Callable[[Sequence[Image.Image]], np.ndarray]


def category_of(concept: Path) -> str:
    """The noun of a concept's folder, `teddy-bear` -> "teddy bear"."""
    return concept.name.replace("-", " ")


def true_pictures(concept: Path) -> list[Path]:
    """The true pictures of `PROMPTS`, in their order: the first ones of those exported."""
    return [concept / "truth" / f"{number}.png" for number in range(1, len(PROMPTS) + 1)]


@torch.no_grad()
def through_vae(components: Components, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """What the VAE keeps of pictures: the posterior's mean, decoded."""
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    posterior = components.vae.encode(pixels.float() / 127.5 - 1).latent_dist
    decoded = components.vae.decode(posterior.mean).sample
    values = ((decoded + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in values]


def calibrate(concept: Path, other: Path, work: Path, judge: ClipJudge, components: Components) -> dict[str, Any]:
    """Identity and text of every row, for one concept.

    Args:
        other: The concept whose true pictures stand for another thing altogether.
    """

    def embedded(pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.asarray(judge.features(pictures).numpy(), np.float64)

    category = category_of(concept)
    own = opened(sorted((concept / "images").iterdir()))
    references, rebuilt = embedded(own), embedded(through_vae(components, own))
    texts = np.asarray(judge.texts([prompt.format(category) for prompt in PROMPTS]).numpy(), np.float64)

    def scored(pictures: Sequence[Path]) -> dict[str, float]:
        rows = embedded(opened(pictures))
        return {
            "identity": float(scores.identity(references, rows).mean()),
            "text": float(scores.text(texts, rows[:, None]).mean()),
        }

    project = work / concept.name
    if not (project / "attnbooth.toml").exists():
        init(project, images=[concept / "images"], category=category, model="tiny")
    train(project, options=TrainOptions(fast=True))
    found = evaluate(project, EvalOptions(baseline=True)).report
    return {
        "concept": concept.name,
        ROWS[0]: {"identity": found["references"]["identity"]},
        ROWS[1]: {"identity": _off_diagonal(scores.cosines(rebuilt, references))},
        ROWS[2]: scored(true_pictures(concept)),
        ROWS[3]: {"identity": found["identity"], "text": found["text"]},
        ROWS[4]: {name: found["untuned"][name]["mean"] for name in ("identity", "text")},
        ROWS[5]: {"identity": scored(true_pictures(other))["identity"]},
    }


def _off_diagonal(values: np.ndarray) -> float:
    return float(values[~np.eye(len(values), dtype=bool)].mean())


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """The mean over concepts of every row with its 95 % interval, as Markdown."""
    lines = ["| pictures | identity | text |", "|---|---|---|"]
    for row in ROWS:
        cells = []
        for measure in ("identity", "text"):
            values = [concept[row][measure] for concept in found if measure in concept[row]]
            its = summary(np.array(values)[:, None]) if values else None
            cells.append(f"{its['mean']:.3f} ({its['low']:.3f} to {its['high']:.3f})" if its else "")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/calibration"))
    parser.add_argument("--concepts", type=Path, default=CONCEPTS)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    file: Path = chosen.work / "calibration.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    judge = load_clip("tiny", bundled_folder(), torch.device("cpu"))
    components = load_components(resolve("tiny"))
    concepts = sorted(path for path in chosen.concepts.iterdir() if path.is_dir())
    for number, concept in enumerate(concepts):
        if concept.name not in {row["concept"] for row in done}:
            other = concepts[(number + 1) % len(concepts)]
            done.append(calibrate(concept, other, chosen.work, judge, components))
            with file.open("a") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
    print("\n".join(table(done)))


if __name__ == "__main__":
    main()
