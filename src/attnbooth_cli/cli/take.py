"""`attnbooth take`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.cli.layout import about, command_lines
from attnbooth_cli.project.project import open_project
from attnbooth_cli.project.shell import command


def take(
    project: options.Project,
    moment: Annotated[
        str, typer.Argument(help="A stage's end or a snapshot, as eval --checkpoints names them: unet-000100.")
    ],
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Make the concept what it was at an earlier moment of training; the present one stays as a snapshot."""
    console = Console(json, quiet, verbose)

    def one(root: Path) -> None:
        open_project(root)  # before torch, which a mistake need not wait for
        from attnbooth_cli.engine.snapshots import take as engine_take

        taken = engine_take(root, moment)
        console.document(
            "take", root, taken.run, moment=taken.name, before=taken.before, stage=taken.stage, step=taken.step
        )
        if taken.before == taken.name:
            console.results(about(root, f"at {taken.name} already, nothing to do", console.width))
        else:
            was = f" (it was at {taken.before})" if taken.before else ""
            console.results(about(root, f"now at {taken.name}{was}", console.width))
            if taken.before:
                back = command("take", root, taken.before)
                console.results(command_lines("back again:", back, console.width))

    return each_project(console, [project], one)
