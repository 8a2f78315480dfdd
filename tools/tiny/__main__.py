"""The recipe of the bundled base model, one command a step: `python -m tools.tiny STEP`, or `all`.

Every step keeps its progress in the work folder, continues after any interruption, and does nothing once it is done.
Steps that train may run side by side, one core each; `--processes 2` gives one of them both.
"""

from __future__ import annotations

import os

# Two PyTorch processes that each use every core stall one another; a step's processes have one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "src" / "attnbooth_cli" / "assets"


@dataclass(frozen=True)
class Options:
    """What every step is told: where to work, on how many processes, and for how long (training steps)."""

    work: Path
    processes: int
    minutes: float | None


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _art(options: Options) -> bool:
    from tools.tiny import art

    art.fetch(options.work / "art")
    art.save_sprites(art.rasterise(options.work / "art"), options.work / "sprites.npz")
    return True


def _pictures(options: Options) -> bool:
    from tools.tiny import dataset

    for split in dataset.SPLITS:
        dataset.build_split(options.work, split, 0, options.processes, say)
    return True


def _tokens(options: Options) -> bool:
    from tools.tiny import tokenizer

    tokenizer.save_tokenizer(options.work)
    return True


def _clip_text(options: Options) -> bool:
    from tools.tiny import clip

    return clip.train_text(options.work, options.minutes)


def _clip_images(options: Options) -> bool:
    from tools.tiny import clip

    return clip.train_images(options.work, options.minutes)


def _vae(options: Options) -> bool:
    from tools.tiny import vae

    return vae.train_whole(options.work, options.processes, options.minutes)


def _decoder(options: Options) -> bool:
    from tools.tiny import vae

    return vae.train_decoder(options.work, options.processes, options.minutes)


def _latents(options: Options) -> bool:
    from tools.tiny import unet

    unet.encode_pictures(options.work, options.processes, say)
    return True


def _unet(options: Options) -> bool:
    from tools.tiny import unet

    return unet.train_unet(options.work, options.processes, options.minutes)


def _classifier(options: Options) -> bool:
    from tools.tiny import judges

    return judges.train_classifier(options.work, options.minutes)


def _instance_encoder(options: Options) -> bool:
    from tools.tiny import judges

    return judges.train_instance_encoder(options.work, options.minutes)


def _measure(options: Options) -> bool:
    from tools.tiny import measure

    measure.measure_all(options.work, say)
    return True


def _export(options: Options) -> bool:
    from tools.tiny import dataset, export, truth

    size = export.export(options.work, ASSETS / "tiny")
    export.export_judges(options.work, ROOT / "benchmarks" / "weights")
    say(f"the bundled model takes {size:,} bytes")
    truth.export_concepts(
        dataset.wardrobe_of(options.work), truth.PROMPTS, ROOT / "benchmarks" / "concepts", ASSETS / "example"
    )
    return True


def _sheets(options: Options) -> bool:
    from tools.tiny import sheets

    sheets.draw_all(options.work, ROOT / "docs" / "images")
    return True


def _schedule(options: Options) -> bool:
    from tools.tiny import export, schedule

    preview = options.work / "preview"
    export.export(options.work, preview)
    schedule.search(options.work, preview, say, options.processes)
    for row in schedule.table(options.work):
        say(str(row))
    return True


def _learned(options: Options) -> bool:
    from tools.tiny import learning

    learning.draw(options.work, "tiny", ROOT / "docs" / "images", say)
    return True


def _card(options: Options) -> bool:
    from tools.tiny import card

    card.write_card(options.work, ROOT / "docs")
    return True


STEPS: dict[str, Callable[[Options], bool]] = {
    "art": _art,
    "pictures": _pictures,
    "tokens": _tokens,
    "clip-text": _clip_text,
    "vae": _vae,
    "latents": _latents,
    "unet": _unet,
    "decoder": _decoder,
    "clip-images": _clip_images,
    "classifier": _classifier,
    "instance-encoder": _instance_encoder,
    "measure": _measure,
    "schedule": _schedule,
    "sheets": _sheets,
    "card": _card,
    "export": _export,
    "learned": _learned,
}
"""Every step, in an order in which each finds what it needs. A step says whether it is done."""


def main(arguments: list[str] | None = None) -> int:
    """Run one step or all of them; 0 when done, 3 when the time given ran out first."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny", description=__doc__.split("\n\n")[0])
    parser.add_argument("step", choices=["all", *STEPS])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiny", help="default: build/tiny")
    parser.add_argument("--processes", type=int, default=1, help="of training, rendering and search steps; default 1")
    parser.add_argument("--minutes", type=float, help="stop a training step after so long, its progress saved")
    parsed = parser.parse_args(arguments)
    options = Options(parsed.work, parsed.processes, parsed.minutes)
    options.work.mkdir(parents=True, exist_ok=True)
    for name in STEPS if parsed.step == "all" else [parsed.step]:
        say(f"--- {name}")
        if not STEPS[name](options):
            say(f"{name} is not done; run the same command again to go on")
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
