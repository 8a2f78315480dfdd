"""What `eval`'s numbers mean on the bundled model: the same scores for pictures whose worth is known.

    python -m benchmarks.calibration --processes 2      # continues; about two minutes a concept and core

For every test concept of the bundled world, on the 24 prompts: its references among themselves and through the VAE; the
true pictures of the prompts, which no method can do better than where only the scene changes; pictures by
AttnDreamBooth (`train --fast`); the true pictures of another concept; and what the untuned base model makes of the
category's word. Results per concept go to `WORK/calibration.jsonl`, the table to stdout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
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
from attnbooth_cli.engine.judges import load_clip
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.question import EvalOptions
from attnbooth_cli.engine.scorecard import summary
from attnbooth_cli.engine.training import train
from benchmarks.judges import judged, load_instance_encoder
from benchmarks.paper_table.run import PROMPTS, opened, tensor

CONCEPTS = Path(__file__).with_name("concepts") / "test"
ROWS = (
    "references among themselves",
    "references through the VAE",
    "true pictures of the prompts",
    "AttnDreamBooth, --fast",
    "untuned base model",
    "true pictures of another concept",
)

JUDGES = ("", ", independent")
"""The bundled judge, and the instance encoder."""
MEASURES = ("identity", "identity in scenes", "identity, independent", "identity in scenes, independent", "text")
"""In scenes: on the twelve prompts that change the scene alone. The others change the colour or the style too, and a
method that neglects those looks more like its references than the true picture does."""
PICTURES = 2
"""Of each prompt, of what is made."""


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


@dataclass(frozen=True)
class Job:
    """One concept; the true pictures of `other` stand for another thing altogether."""

    concept: Path
    other: Path
    work: Path


def calibrate(job: Job) -> dict[str, Any]:
    """The measures of every row, for one concept."""
    concept, other, work = job.concept, job.other, job.work
    category = category_of(concept)
    project = work / concept.name
    if not (project / "attnbooth.toml").exists():
        init(project, images=[concept / "images"], category=category, model="tiny")
    train(project, options=TrainOptions(fast=True))
    found = evaluate(project, EvalOptions(n=PICTURES, baseline=True, drift=False)).report
    made = [project / name for name in found["pictures"]]
    places = {path.parent for path in made}
    untuned = [path for path in (project / "eval" / "pictures").rglob("*.png") if path.parent not in places]
    own = opened(sorted((concept / "images").iterdir()))
    rebuilt = through_vae(load_components(resolve("tiny")), own)
    judge, encoder = load_clip("tiny", bundled_folder(), torch.device("cpu")), load_instance_encoder()
    texts = np.asarray(judge.texts([prompt.format(category) for prompt in PROMPTS]).numpy(), np.float64)

    def embedded(pictures: Sequence[Image.Image]) -> list[np.ndarray]:
        """By the bundled judge, and by the instance encoder."""
        both = (judge.features(pictures), torch.cat(judged(encoder, tensor(pictures))))
        return [np.asarray(its.numpy(), np.float64) for its in both]

    references = embedded(own)

    def themselves(pictures: Sequence[Image.Image]) -> dict[str, float]:
        values = [scores.cosines(rows, its) for rows, its in zip(embedded(pictures), references, strict=True)]
        means = [float(its[~np.eye(len(its), dtype=bool)].mean()) for its in values]
        return {f"identity{name}": mean for name, mean in zip(JUDGES, means, strict=True)}

    def scored(paths: Sequence[Path], in_order: bool = True) -> dict[str, float]:
        """`in_order`: as many pictures of each prompt in turn, the first half of the prompts being scenes."""
        found: dict[str, float] = {}
        for name, its, rows in zip(JUDGES, references, embedded(opened(paths)), strict=True):
            found[f"identity{name}"] = float(scores.identity(its, rows).mean())
            if in_order:
                found[f"identity in scenes{name}"] = float(scores.identity(its, rows[: len(rows) // 2]).mean())
        return found

    truth = true_pictures(concept)
    features = np.asarray(judge.features(opened(truth)).numpy(), np.float64)
    return {
        "concept": concept.name,
        ROWS[0]: themselves(own),
        ROWS[1]: themselves(rebuilt),
        ROWS[2]: scored(truth) | {"text": float(scores.text(texts, features[:, None]).mean())},
        ROWS[3]: scored(made) | {"text": found["text"]},
        ROWS[4]: scored(untuned, in_order=False) | {"text": found["untuned"]["text"]["mean"]},
        ROWS[5]: scored(true_pictures(other)),
    }


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """The mean over concepts of every row with its 95 % interval, as Markdown."""
    lines = [f"| pictures | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for row in ROWS:
        cells = []
        for measure in MEASURES:
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
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    file: Path = chosen.work / "calibration.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    concepts = sorted(path for path in chosen.concepts.iterdir() if path.is_dir())
    jobs = [
        Job(concept, other, chosen.work)
        for concept, other in zip(concepts, concepts[1:] + concepts[:1], strict=True)
        if concept.name not in {row["concept"] for row in done}
    ]
    with get_context("spawn").Pool(chosen.processes, torch.set_num_threads, (1,)) as pool:
        for row in pool.imap_unordered(calibrate, jobs):
            done.append(row)
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
    print("\n".join(table(done)))


if __name__ == "__main__":
    main()
