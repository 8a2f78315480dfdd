"""The most memory that training takes by each method: of a process that does nothing else, a few steps of each stage.

The comparison's own processes cannot tell: what they hold comes from all the units they have done.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.methods import METHODS
from attnbooth_cli.engine.training import train
from attnbooth_cli.project import durable
from benchmarks.memory import peak_bytes
from benchmarks.paper_table.run import options_of
from benchmarks.paper_table.units import Unit

STEPS = 3
"""Of each stage: AdamW's moments are there after the first."""
CLASS_PICTURES = 4
"""Made together, as more are."""


def peak_mb(unit: Unit) -> float:
    """Of this process, libraries included, after it has trained a unit for a few steps."""
    stages = [stage.name for stage in METHODS[unit.method].stages if stage.enabled]
    short = [f"train.{name}.steps={STEPS}" for name in stages]
    options = options_of(unit)
    settings = (*options.settings, *short, f"train.prior_pictures={CLASS_PICTURES}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "concept"
        init(root, images=[unit.images], category=unit.category, model="tiny")
        train(root, options=replace(options, settings=settings), report=False)
    return peak_bytes() / 1e6


def measure(units: Sequence[Unit], work: Path) -> None:
    """Writes each unit's peak, by its label, one process after another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        peaks = dict(zip([unit.label for unit in units], processes.map(peak_mb, units), strict=True))
    durable.write_json(work / "peaks.json", peaks)


def measured(work: Path) -> dict[str, float]:
    """What `measure` wrote; nothing if it has not been run."""
    file = work / "peaks.json"
    return json.loads(file.read_text()) if file.exists() else {}
