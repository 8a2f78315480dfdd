"""`attnbooth inspect-attn`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console, printable
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.project.project import open_project


def inspect_attn(
    project: options.Project,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="A prompt; {} stands for the concept. With --picture, the training prompt by default.",
            show_default=False,
        ),
    ] = None,
    words: Annotated[
        list[str] | None, typer.Option("--word", help="A word to show; {} for the concept. All words by default.")
    ] = None,
    stage: Annotated[options.Stage | None, typer.Option(help="The concept as it was after this stage.")] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Look through every stage of training.")] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Look through another project too; may be repeated.", metavar="PROJECT"),
    ] = None,
    base: Annotated[bool, typer.Option(help="Look through the base model too, and measure how far it is.")] = True,
    picture: Annotated[
        Path | None,
        typer.Option(help="Look at this picture, or training picture, in place of making one.", metavar="FILE"),
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Only layers whose maps have this height.")] = None,
    step_range: Annotated[
        str | None, typer.Option(help="Only these denoising steps, from 1.", metavar="FIRST-LAST")
    ] = None,
    head: Annotated[int | None, typer.Option(min=0, help="Only this head of each layer, from 0.")] = None,
    branch: Annotated[
        Literal["conditional", "unconditional"], typer.Option(help="Of guidance: the prompt's or the negative one's.")
    ] = "conditional",
    seed: Annotated[int, typer.Option(min=0, help="Of the picture, or of the noise on an existing one.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps, as in generate.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=100, help="Guidance, as in generate.")] = None,
    negative: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    scheduler: Annotated[str, typer.Option(help="dpm++, ddim, euler, euler-a, unipc or pndm.")] = "dpm++",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the training resolution by default.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Also write a page to explore it in.")] = False,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Show where each word of a prompt looks, in a picture that is made or in one there is."""
    console = Console(json, quiet, verbose)

    def one(root: Path) -> None:
        open_project(root)  # before torch, which a mistake need not wait for
        from attnbooth_cli.cli.progress import shown
        from attnbooth_cli.cli.signals import stop_at_once
        from attnbooth_cli.engine.inspection import InspectOptions, inspect_attention

        asked = InspectOptions(
            words=tuple(words or ()),
            stage=stage,
            stages=stages,
            beside=tuple(beside or ()),
            base=base,
            picture=picture,
            resolution=resolution,
            step_range=step_range,
            head=head,
            branch=branch,
            seed=seed,
            steps=steps,
            guidance=guidance,
            negative=negative,
            scheduler=scheduler,
            size=size,
            report=report,
            device=device or "auto",
        )
        with stop_at_once(), shown(console) as emit:
            made = inspect_attention(root, prompt, asked, emit=emit)
        fields = dict(made.report)
        run = fields.pop("run")
        fields.pop("schema")
        console.document("inspect-attn", project, run, folder=made.folder, page=made.page, **fields)
        for line in (line for view in made.report["views"] for line in _rows(view, len(made.report["views"]) > 1)):
            console.result(printable(line))
        for path in (made.sheet, made.comparison, made.page):
            if path:
                console.result(str(path))

    return each_project(console, [project], one)


def _rows(view: Mapping[str, Any], named: bool) -> Iterator[str]:
    """A view's numbers, a line a word."""
    if named:
        yield f"{view['label']}:"
    yield f"  {'share':>7} {'mean':>8} {'variance':>9} {'overlap':>8} {'base':>7} {'overlap':>8}  word"
    for row in view["words"]:
        mean, variance = (f"{row[name]:{form}}" if row[name] is not None else "" for name, form in _STATISTICS)
        with_category, in_base, with_base = (
            f"{row[name]:.{digits}f}" if row[name] is not None else "" for name, digits in _COMPARED
        )
        yield (
            f"  {row['share']:7.4f} {mean:>8} {variance:>9} {with_category:>8} {in_base:>7} {with_base:>8}  "
            f"{row['word'][:24]}"
        )


_STATISTICS = (("mean", ".5f"), ("variance", ".2e"))
_COMPARED = (("overlap_with_category", 3), ("share_in_base", 4), ("overlap_with_base", 3))
