"""`attnbooth inspect-attn`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.cli.inline import show_pictures
from attnbooth_cli.project.project import open_project


def inspect_attn(
    project: options.Project,
    prompt: Annotated[str, typer.Argument(help="A prompt; {} stands for the concept.", show_default=False)],
    words: Annotated[
        list[str] | None, typer.Option("--word", help="A word to show; {} for the concept. All words by default.")
    ] = None,
    stage: Annotated[options.Stage | None, typer.Option(help="The concept as it was after this stage.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Only layers whose maps have this height.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the picture.")] = 0,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Make a picture and show where each word of its prompt looks."""
    console = Console(json, quiet, verbose)

    def one(root: Path) -> None:
        open_project(root)  # before torch, which a mistake need not wait for
        from attnbooth_cli.cli.progress import shown
        from attnbooth_cli.cli.signals import stop_at_once
        from attnbooth_cli.engine.inspection import inspect_attention

        with stop_at_once(), shown(console) as emit:
            made = inspect_attention(
                root,
                prompt,
                words=words or (),
                stage=stage,
                resolution=resolution,
                seed=seed,
                device=device or "auto",
                emit=emit,
            )
        fields = dict(made.report)
        run = fields.pop("run")
        fields.pop("schema")
        console.document("inspect-attn", project, run, folder=made.folder, **fields)
        console.result("    mean     max  word")
        for row in made.report["words"]:
            console.result(f"  {row['mean']:.4f}  {row['max']:.4f}  {row['word']}")
        console.result(str(made.sheet))
        show_pictures(console, [made.sheet])

    return each_project(console, [project], one)
