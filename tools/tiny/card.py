"""The model card's figures: gathered from the work folder into `docs/tiny-measured.json`, and from there into tables.

The tables stand in `docs/tiny.md` between two comments and are never edited by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tools.tiny import clip, judges, unet, vae
from tools.tiny.schedule import table
from tools.tiny.training import CURVE, Schedule

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MEASUREMENTS = ("autoencoder", "prompts", "zero-shot", "ranking", "calibration")
TRAININGS: dict[str, tuple[str, Schedule]] = {
    "CLIP, both towers": ("clip/text-phase", clip.TEXT_PHASE),
    "CLIP, image tower": ("clip/image-phase", clip.IMAGE_PHASE),
    "autoencoder": ("vae/whole", vae.WHOLE_SCHEDULE),
    "its decoder": (f"vae/decoder-after-{vae.WHOLE_SCHEDULE.steps}", vae.DECODER_SCHEDULE),
    "U-Net": ("unet/training", unet.SCHEDULE),
    "classifier": ("judges/classifier", judges.CLASSIFIER_SCHEDULE),
    "instance encoder": ("judges/encoder", judges.INSTANCE_SCHEDULE),
}
"""Each training's folder and schedule."""
POINTS = 12
"""Lines of a learning curve that are kept."""


def _curve(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / CURVE).read_text("utf-8").splitlines()]
    chosen = sorted({round(k * (len(lines) - 1) / (POINTS - 1)) for k in range(POINTS)})
    return [lines[k] for k in chosen]


def gather(work: Path) -> dict[str, Any]:
    """Every figure of the card. Raises `FileNotFoundError` for what has not been measured yet."""
    figures: dict[str, Any] = {
        name: json.loads((work / "measured" / f"{name}.json").read_text("utf-8")) for name in MEASUREMENTS
    }
    figures["trainings"] = {
        name: {"steps": schedule.steps, "batch": schedule.batch_size, "curve": _curve(work / folder)}
        for name, (folder, schedule) in TRAININGS.items()
    }
    figures["schedule"] = table(work)
    return figures


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _spread(figures: dict[str, float], digits: int = 3) -> str:
    mean, low, high = (f"{figures[key]:.{digits}f}" for key in ("mean", "min", "max"))
    return f"{mean} ({low} to {high})"


def tables(figures: dict[str, Any]) -> str:
    """The card's tables, in Markdown."""
    prompts, parts = figures["prompts"], []
    rows = [
        (
            key,
            _spread(its),
            _spread(prompts["real"][key]),
            f"{prompts['chance'][key]:.3f}" if key in prompts["chance"] else "",
        )
        for key, its in prompts["generated"].items()
    ]
    parts.append(
        f"Independent classifier, {prompts['prompts']} prompts a seed, DPM-Solver++ {prompts['steps']} steps, guidance "
        f"{prompts['guidance']:g}; mean of three seeds (least to greatest):\n\n"
        + _table(("what the prompt asks for", "generated", "true pictures", "chance"), rows)
    )
    encoder = figures["autoencoder"]
    kept = [(f"identity kept, {name}", f"{value:.3f}") for name, value in encoder["identity kept"].items()]
    parts.append(
        "Autoencoder, held-out concepts:\n\n"
        + _table(
            ("", ""),
            [
                ("PSNR, photos in new scenes, dB", _spread(encoder["psnr on new pictures"], 2)),
                ("PSNR, references, dB", f"{encoder['psnr on references']:.2f}"),
                *kept,
            ],
        )
    )
    shot = figures["zero-shot"]
    parts.append(
        f"Bundled judge, zero-shot object of held-out instances' photos, of {round(1 / shot['chance'])}: "
        f"{_spread(shot['object'])}, chance {shot['chance']:.3f}."
    )
    ranks = figures["ranking"]
    parts.append(
        "A new picture of a held-out concept lies nearer its references than another instance of its category does:\n\n"
        + _table(
            ("compared with", *ranks),
            [(key, *(_spread(its[key]) for its in ranks.values())) for key in next(iter(ranks.values()))],
        )
    )
    calibration = {name: its for name, its in figures["calibration"].items() if name != "text"}
    parts.append(
        "Mean cosine to a held-out concept's references:\n\n"
        + _table(
            ("", *calibration),
            [(key, *(f"{its[key]:.3f}" for its in calibration.values())) for key in next(iter(calibration.values()))],
        )
    )
    parts.append(
        "Bundled judge, cosine of pictures and prompts:\n\n"
        + _table(("", ""), [(key, f"{value:.3f}") for key, value in figures["calibration"]["text"].items()])
    )
    parts.append(
        "Training:\n\n"
        + _table(
            ("", "steps", "batch", "minutes"),
            [
                (name, f"{its['steps']:,}", its["batch"], round(its["curve"][-1]["seconds"] / 60))
                for name, its in figures["trainings"].items()
            ],
        )
    )
    columns = ("trial", "identity", "scene", "style", "object", "both")
    parts.append(
        "Schedule search (factors of the fast rates in the three stages, augmentation), means over the six tuning "
        "concepts:\n\n" + _table(columns, [[row[column] for column in columns] for row in figures["schedule"]])
    )
    return "\n\n".join(parts)


def write_card(work: Path, docs: Path) -> None:
    """Gather the figures into `docs/tiny-measured.json` and put the tables into `docs/tiny.md`."""
    figures = gather(work)
    (docs / "tiny-measured.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    card = docs / "tiny.md"
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    text, found = pattern.subn(lambda _: f"{BEGIN}\n\n{tables(figures)}\n\n{END}", card.read_text("utf-8"))
    if found != 1:
        raise ValueError(f"{card} has no place for the measured tables")
    card.write_text(text, "utf-8")
