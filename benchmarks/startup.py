"""What starting costs: python -m benchmarks.startup [--pairs N] [--memory MB]

Every figure is a ratio of two processes run in turn, median of pairs, with the lowest and the highest:

    help        `attnbooth --help` over `python -c "import typer"`; and its seconds
    dry run     `attnbooth train --dry-run` over the same; and its seconds
    first step  from the command `attnbooth train` on the bundled model to the moment its first training step begins,
                over the bare imports of what a step needs (torch, diffusers' U-Net and VAE, transformers' CLIP,
                accelerate); and to the moment it is done
    loading     peak memory of loading a U-Net with random weights of about MB megabytes, stored in float32, above what
                is there before, over the size of its weights

Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BARE = """
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
"""
TYPER = "import typer"

FIRST_STEP = """
import os, sys, time
from attnbooth_cli.events import StageStarted, Stepped
from attnbooth_cli.cli import train
reporter = train.reporter
def timed(*arguments):
    report = reporter(*arguments)
    def heard(event):
        if isinstance(event, StageStarted):
            print(time.time(), file=sys.stderr, flush=True)
        if isinstance(event, Stepped):
            print(time.time(), file=sys.stderr, flush=True)
            os._exit(0)
        report(event)
    return heard
train.reporter = timed
from attnbooth_cli.cli.app import run
run(["train", sys.argv[1], "--restart", "-q"])
"""
"""`attnbooth train` that says when its first step begins and when it is done, and leaves then."""

LOADING = """
import dataclasses, json, sys
from pathlib import Path
from benchmarks.startup import status
from attnbooth_cli.engine import families
from attnbooth_cli.engine.base_models import resolve
tiny = resolve("tiny")
families.load_components(tiny)  # what loading imports is not counted
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
components = families.load_components(dataclasses.replace(tiny, kind="folder", path=Path(sys.argv[1])))
peak = status("VmHWM") - before
for parameter in components.unet.parameters():
    parameter.sum()
weights = sum(its.numel() * its.element_size() for its in components.unet.parameters())
pipeline = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion" in sys.modules
print(json.dumps({"weights": weights, "loaded": peak, "read": status("VmHWM") - before, "pipeline": pipeline}))
"""


def status(name: str) -> int:
    """Bytes, of /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def seconds(command: Sequence[str]) -> float:
    """How long a process takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def to_first_step(project: Path) -> tuple[float, float]:
    """Seconds from the command until its first step begins, and until that is done."""
    began = time.time()
    done = subprocess.run([sys.executable, "-c", FIRST_STEP, str(project)], check=True, capture_output=True, text=True)
    begins, ends = map(float, done.stderr.split()[-2:])
    return begins - began, ends - began


def summary(ratios: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": round(statistics.median(ratios), 3), "lowest": round(min(ratios), 3), "highest": round(max(ratios), 3)
    }  # fmt: skip


def light(name: str, arguments: Sequence[str], pairs: int) -> dict[str, Any]:
    """A command that needs no torch, beside an import of Typer."""
    command = [sys.executable, "-m", "attnbooth_cli", *arguments]
    taken = [(seconds(command), seconds([sys.executable, "-c", TYPER])) for _ in range(pairs)]
    return {
        f"{name} over typer": summary([ours / theirs for ours, theirs in taken]),
        f"{name} seconds": summary([ours for ours, _ in taken]),
    }


def first_step(project: Path, pairs: int) -> dict[str, Any]:
    """`train` beside the bare imports."""
    taken = [(to_first_step(project), seconds([sys.executable, "-c", BARE])) for _ in range(pairs)]
    return {
        "first step begins over imports": summary([ours[0] / bare for ours, bare in taken]),
        "first step done over imports": summary([ours[1] / bare for ours, bare in taken]),
        "imports seconds": summary([bare for _, bare in taken]),
    }


def loading(folder: Path, megabytes: int) -> dict[str, Any]:
    """Peak memory of loading a base model, in a process of its own."""
    from diffusers import UNet2DConditionModel

    from attnbooth_cli.engine.base_models import resolve

    tiny = resolve("tiny").path
    width = max(1, round((megabytes / 543) ** 0.5 * 4)) * 32  # 543 MB at 128; groups of 32 channels are normalised
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("clip", "unet"))
    across = json.loads((tiny / "text_encoder" / "config.json").read_text())["hidden_size"]
    unet = UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width), cross_attention_dim=across, attention_head_dim=8
    )
    unet.save_pretrained(folder / "unet")
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(folder)], check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    found = json.loads(done.splitlines()[-1])
    return {
        "weights MB": round(found["weights"] / 1e6),
        "loading over weights": round(found["loaded"] / found["weights"], 3),
        "loading and reading over weights": round(found["read"] / found["weights"], 3),
        "loading imports a pipeline": found["pipeline"],
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", type=int, default=500, metavar="MB")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "toadstool"
        seconds([sys.executable, "-m", "attnbooth_cli", "init", str(project), "--example"])
        found = {
            **light("help", ["--help"], chosen.pairs),
            **light("dry run", ["train", str(project), "--dry-run"], chosen.pairs),
            **first_step(project, chosen.pairs),
            **loading(Path(folder) / "base", chosen.memory),
        }
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
