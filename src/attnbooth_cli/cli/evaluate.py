"""`attnbooth eval`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project, in_one_document

if TYPE_CHECKING:
    from attnbooth_cli.engine.evaluation import Scores


def evaluate(
    projects: options.Projects,
    prompts: options.PromptsFile = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures of each prompt.")] = 2,
    clip: Annotated[str | None, typer.Option(help="The judge: a CLIP model's hub id or folder, or tiny.")] = None,
    min_identity: Annotated[float | None, typer.Option(help="Exit with 3 if identity is below.")] = None,
    min_text: Annotated[float | None, typer.Option(help="Exit with 3 if text similarity is below.")] = None,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Score the concept: does it look like the pictures, and do the pictures follow the prompts?"""
    from attnbooth_cli.cli.progress import shown
    from attnbooth_cli.cli.signals import stop_at_once
    from attnbooth_cli.engine.evaluation import check_gates
    from attnbooth_cli.engine.evaluation import evaluate as engine_evaluate
    from attnbooth_cli.engine.generation import read_prompts

    console = Console(json, quiet, verbose)
    texts = read_prompts(prompts) if prompts else ()
    results: list[dict[str, Any]] = []

    def one(root: Path) -> None:
        with shown(console) as emit:
            scores = engine_evaluate(root, prompts=texts, n=n, clip=clip, device=device or "auto", emit=emit)
        results.append({"project": str(root), **scores.report})
        for line in _table(scores):
            console.result(line)
        check_gates(scores, min_identity, min_text)

    with stop_at_once():
        code = each_project(console, projects, one, in_one_document(console, results, len(projects)))
    if len(projects) == 1 and results:
        head = {"project": None, "run": None, **results[0]}
        console.document("eval", head.pop("project"), head.pop("run"), exit_code=code, **head)
    elif len(projects) > 1:
        console.document("eval", None, None, exit_code=code, results=results)
    return code


def _table(scores: Scores) -> Iterator[str]:
    protocol = scores.report["protocol"]
    yield f"identity {scores.identity:.4f}   text {scores.text:.4f}"
    yield (
        f"  judge {protocol['judge']}, {protocol['references']} references, "
        f"{protocol['prompts']} prompts x {protocol['pictures_per_prompt']} pictures, {protocol['steps']} steps"
    )
    yield "  identity    text  prompt"
    for row in scores.report["per_prompt"]:
        yield f"    {row['identity']:.4f}  {row['text']:.4f}  {row['prompt']}"
    yield f"  {scores.path}"
