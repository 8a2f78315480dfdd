"""`attnbooth generate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.cli.first_use import heavy_imports
from attnbooth_cli.cli.inline import show_pictures
from attnbooth_cli.project.project import open_project
from attnbooth_cli.project.prompt_files import read_prompts


def generate(
    project: options.Project,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Prompts; {} stands for the concept.", show_default=False)
    ] = None,
    prompts: options.PromptsFile = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Picture i uses seed N+i.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps; the base model's own by default.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, max=100, help="Guidance; the base model's own by default.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    scheduler: Annotated[str, typer.Option(help="dpm++, ddim, euler, euler-a, unipc or pndm.")] = "dpm++",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the training resolution by default.")] = None,
    stage: Annotated[options.Stage | None, typer.Option(help="The concept as it was after this stage.")] = None,
    out: Annotated[Path | None, typer.Option(help="Another folder than the project's samples/.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Also write all pictures on one sheet.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write a page with all pictures and how to make each again.")
    ] = False,
    missing: Annotated[
        bool, typer.Option("--missing", help="Make only those that are not there yet, after an interruption.")
    ] = False,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Make pictures of the concept from prompts."""
    console = Console(json, quiet, verbose)

    def one(root: Path) -> None:
        open_project(root)  # before torch, which a mistake need not wait for
        from attnbooth_cli.cli.progress import shown
        from attnbooth_cli.cli.signals import stop_at_once

        with heavy_imports():
            from attnbooth_cli.engine.generation import generate as engine_generate

        texts = [*(prompt or ()), *(read_prompts(prompts) if prompts else ())]
        again = "the same command with --missing goes on"
        with stop_at_once(again), shown(console) as emit:
            made = engine_generate(
                root,
                texts,
                n=n,
                seed=seed,
                steps=steps,
                guidance=guidance,
                negative=negative,
                scheduler=scheduler,
                size=size,
                stage=stage,
                out=out,
                grid=grid,
                report=report,
                missing=missing,
                device=device or "auto",
                emit=emit,
            )
        console.document(
            "generate",
            made.project.root,
            made.run,
            stage=made.stage,
            settings=dataclasses.asdict(made.settings),
            pictures=[dataclasses.asdict(picture) for picture in made.pictures],
            grid=made.grid,
            report=made.report,
        )
        for picture in made.pictures:
            console.result(str(picture.path))
        if made.grid:
            console.result(str(made.grid))
        if made.report:
            console.result(str(made.report))
        show_pictures(console, [made.grid] if made.grid else [picture.path for picture in made.pictures])

    return each_project(console, [project], one)
