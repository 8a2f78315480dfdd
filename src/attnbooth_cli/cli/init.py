"""`attnbooth init`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.cli.layout import about, command_lines, wrapped
from attnbooth_cli.project.shell import command

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
        console.results(summary(made, console.width))
        console.results(command_lines("next:", command("train", root, "--fast"), console.width))

    return each_project(console, [project], one)


def summary(made: Initialised, width: int) -> Iterator[str]:
    """What was made, for people."""
    root = made.project.root
    derived = " (from the folder's name; --category says otherwise)" if made.derived else ""
    count = len(made.pictures)
    earlier = f", and {made.earlier} that were there before" if made.earlier else ""
    yield from about(root, f"{count} picture{'s' if count != 1 else ''} of a {made.category}{earlier}{derived}", width)
    pieces = f", the first of {' + '.join(made.pieces)}" if len(made.pieces) > 1 else ""
    revision = f" at {made.revision[:12]}" if made.revision else ""
    for line in (
        f"token {made.token}, which starts as {made.pieces[0]!r}{pieces}",
        f"base model {made.model}{revision}, {made.resolution} pixels",
        *made.notes,
        *(f"skipped {skipped}" for skipped in made.skipped),
    ):
        yield from wrapped(f"  {line}", width)
