"""`attnbooth inspect-attn`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console, printable
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.cli.first_use import heavy_imports
from attnbooth_cli.cli.inline import show_pictures
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

        with heavy_imports():
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
        with stop_at_once(kept="nothing was written"), shown(console) as emit:
            made = inspect_attention(root, prompt, asked, emit=emit)
        fields = dict(made.report)
        run = fields.pop("run")
        for name in ("schema", "project"):
            fields.pop(name)
        console.document("inspect-attn", project, run, folder=made.folder, page=made.page, **fields)
        for line in (*_rows(made.report["words"]), *_side_by_side(made.report, made.report["views"])):
            console.result(printable(line))
        for path in (made.sheet, made.comparison, made.page):
            if path:
                console.result(str(path))
        several = len(made.report["views"]) > 2  # more than the concept and the base model
        show_pictures(console, [made.comparison if several and made.comparison else made.sheet])

    return each_project(console, [project], one)


def _rows(words: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a word."""
    yield f"  {'':>7} {'of a token':>18} {'with the':>8} {'in the base model':>17}"
    yield f"  {'share':>7} {'mean':>8} {'variance':>9} {'category':>8} {'share':>8} {'overlap':>8}  word"
    for row in words:
        cells = (f"{row[name]:{form}}" if row[name] is not None else "" for name, form in _FORMS.items())
        share, mean, variance, category, in_base, base = cells
        yield f"  {share:>7} {mean:>8} {variance:>9} {category:>8} {in_base:>8} {base:>8}  {row['word'][:22]}"


_FORMS = {
    "share": ".4f", "mean": ".5f", "variance": ".2e",
    "overlap_with_category": ".3f", "share_in_base": ".4f", "overlap_with_base": ".3f",
}  # fmt: skip


def _side_by_side(main: Mapping[str, Any], views: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The share of every word, a column a view; nothing where the base model is the only other one."""
    if sum(view["project"] is not None for view in views) < 2:
        return
    shown = views[:COLUMNS]
    yield "share of attention"
    yield "  " + " ".join(f"{view['label'].removeprefix('after stage ')[:10]:>10}" for view in shown) + "  word"
    for word in dict.fromkeys(row["word"] for view in (main, *shown) for row in view["words"]):
        shares = [next((row["share"] for row in view["words"] if row["word"] == word), None) for view in shown]
        yield "  " + " ".join(f"{'' if share is None else f'{share:.4f}':>10}" for share in shares) + f"  {word[:20]}"


COLUMNS = 5
"""Views whose shares fit a terminal of 80 columns."""
