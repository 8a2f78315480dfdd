"""`attnbooth status`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project, in_one_document
from attnbooth_cli.cli.layout import about, command_lines, wrapped


def status(
    projects: options.Projects,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what a project holds: concept, base model, runs, and what to do next."""
    from attnbooth_cli.engine.status import project_status

    console = Console(json, quiet, verbose)
    found: list[dict[str, Any]] = []

    def one(root: Path) -> None:
        facts = project_status(root)
        found.append({"project": str(root), **facts})
        console.results(_lines(root, facts, console.width))

    code = each_project(console, projects, one, in_one_document(console, found, len(projects)))
    if found and len(projects) == 1:
        head = found[0]
        console.document("status", head.pop("project"), (head["concept"] or {}).get("run"), **head)
    elif len(projects) > 1:
        console.document("status", None, None, exit_code=code, projects=found)
    return code


def _lines(root: Path, facts: dict[str, Any], width: int) -> Iterator[str]:
    pictures = f"{facts['pictures']} picture{'s' if facts['pictures'] != 1 else ''}"
    yield from about(root, f"{facts['token']}, a {facts['category']}, {pictures}", width)
    yield from wrapped(f"  base model {facts['base_model']}", width)
    for run in facts["runs"]:
        stages = ", ".join(run["stages"]) or "no stage finished"
        saved = f", checkpoint {run['checkpoints'][-1]}" if run["checkpoints"] else ""
        number = len(run["snapshots"])
        kept = f", {number} snapshot{'s' if number != 1 else ''}" if number else ""
        yield from wrapped(f"  run {run['name']}: {run['status']} ({stages}{saved}{kept})", width)
    if concept := facts["concept"]:
        at = f" at step {concept['step']} of stage {concept['stages'][-1]}" if concept["step"] is not None else ""
        which = "smoke test's concept" if concept["smoke"] else "concept"
        made = f"{which} from run {concept['run']}{at}: {concept['token']}, a {concept['category']}"
        yield from wrapped(f"  {made}", width)
    yield f"  {facts['samples']} sample{'s' if facts['samples'] != 1 else ''}"
    yield from command_lines("next:", facts["next"], width)
