"""`status`: what a project holds, read without its lock and without torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from attnbooth_cli.engine.methods import STAGE_NAMES
from attnbooth_cli.project.documents import read_json_object
from attnbooth_cli.project.project import open_project
from attnbooth_cli.project.shell import command
from attnbooth_cli.project.state import read_state


def project_status(root: Path | str) -> dict[str, Any]:
    """Concept, base model, runs and where each stands, as one JSON object.

    Raises:
        InputError: not a project.
    """
    project, manifest = open_project(Path(root))
    state = read_state(project)
    card = read_json_object(project.concept / "concept.json") or {}
    if not isinstance(card.get("stages"), list) or not card["stages"]:
        card = {}  # not one of ours; what is wrong with it is said where it is needed
    samples = sorted(project.samples.glob("*.png")) if project.samples.is_dir() else []
    generate = f'{command("generate", project.root)} "a photo of a {{}} on a beach"'
    train = command("resume" if state.unfinished else "train", project.root)
    return {
        "name": manifest.concept.name,
        "category": manifest.concept.category,
        "token": manifest.concept.token,
        "base_model": manifest.base.model,
        "pictures": sum(1 for path in (project.root / manifest.concept.images).glob("*") if path.is_file()),
        "runs": [
            {
                **dataclasses.asdict(run),
                "checkpoints": _checkpoints(project.runs / run.name),
                "snapshots": _snapshots(project.runs / run.name),
            }
            for run in state.runs
        ],
        "concept": {key: card.get(key) for key in ("run", "stages", "step", "smoke", "token", "category")}
        if card
        else None,
        "samples": len(samples),
        "next": generate if card and not card.get("smoke") and not state.unfinished else train,
    }


def _snapshots(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob("snapshots/*/concept.json"))


def _checkpoints(run: Path) -> list[str]:
    """Oldest first: by stage, and by step, which their names have in six digits."""
    found = (path.parent.name for path in run.glob("checkpoints/*/checkpoint.json"))
    stages: list[str] = list(STAGE_NAMES)
    ours = (name for name in found if name.partition("-")[0] in stages)
    return sorted(ours, key=lambda name: (stages.index(name.partition("-")[0]), name))
