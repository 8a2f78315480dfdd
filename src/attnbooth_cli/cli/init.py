"""`attnbooth init`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.project.shell import quoted

if TYPE_CHECKING:
    from attnbooth_cli.engine.initialisation import Initialised


def init(
    project: options.Project,
    category: Annotated[
        str | None, typer.Option(help="What the concept is, such as cat; from the folder's name by default.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="A picture or a folder of pictures; may be repeated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: tiny, a folder, a .safetensors file or a hub id.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The word that will stand for the concept, such as <my-cat>.")
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=16, max=4096, help="Training resolution in pixels.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Bundled pictures and bundled base model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write a new manifest where there is one.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Make a concept project from a folder of pictures."""
    console = Console(json, quiet, verbose)

    def one(root: Path) -> None:
        from attnbooth_cli.cli.progress import shown
        from attnbooth_cli.cli.signals import stop_at_once
        from attnbooth_cli.engine.initialisation import init as engine_init

        with stop_at_once(), shown(console) as emit:
            made = engine_init(
                root,
                images=images or (),
                category=category,
                model=model,
                token=token,
                resolution=resolution,
                force=force,
                example=example,
                emit=emit,
                bars=console.interactive,
            )
        console.document(
            "init",
            made.project.root,
            None,
            category=made.category,
            token=made.token,
            model=made.model,
            revision=made.revision,
            resolution=made.resolution,
            pictures=[str(path) for path in made.pictures],
            notes=made.notes,
            skipped=made.skipped,
            earlier=made.earlier,
            category_pieces=made.pieces,
        )
        for line in summary(made):
            console.result(line)
        console.result(f"next: attnbooth train {quoted(root)} --fast")

    return each_project(console, [project], one)


def summary(made: Initialised) -> Iterator[str]:
    """What was made, for people."""
    root = made.project.root
    derived = " (from the folder's name; --category says otherwise)" if made.derived else ""
    count = len(made.pictures)
    earlier = f", and {made.earlier} that were there before" if made.earlier else ""
    yield f"{root}: {count} picture{'s' if count != 1 else ''} of a {made.category}{earlier}{derived}"
    yield f"  token {made.token}, which starts as {made.pieces[0]!r}" + (
        f", the first of {' + '.join(made.pieces)}" if len(made.pieces) > 1 else ""
    )
    yield (
        f"  base model {made.model}"
        + (f" at {made.revision[:12]}" if made.revision else "")
        + (f", {made.resolution} pixels")
    )
    for note in made.notes:
        yield f"  {note}"
    for skipped in made.skipped:
        yield f"  skipped {skipped}"
