"""`attnbooth eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.scoring import run_scoring
from attnbooth_cli.cli.study import run_study, run_tally
from attnbooth_cli.errors import InputError

if TYPE_CHECKING:
    from attnbooth_cli.engine.question import EvalOptions


def evaluate(
    projects: Annotated[
        list[Path],
        typer.Argument(help="One or more concept projects; with --tally, files of answers.", show_default=False),
    ],
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A set (evaluation, complex, object, live) or a text file, one prompt a line.", metavar="SET|FILE"
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Pictures of each prompt.")] = None,
    protocol: Annotated[
        str, typer.Option(help="What is fixed: attnbooth, textual-inversion or dreambooth.")
    ] = "attnbooth",
    clip: Annotated[str | None, typer.Option(help="The judge: a CLIP model's hub id or folder, or tiny.")] = None,
    dino: Annotated[
        str | None, typer.Option(help="A second judge of identity: a DINO model's hub id or folder, or none.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Picture i of every prompt uses seed N + i.")] = 0,
    stage: Annotated[options.Stage | None, typer.Option(help="The concept as it was after this stage.")] = None,
    drift: Annotated[bool, typer.Option(help="Also measure how far other prompts have moved.")] = True,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also score the untuned base model on the same prompts.")
    ] = False,
    untuned_pictures: Annotated[
        Path | None, typer.Option(help="Keep the base model's own pictures here, for all projects.", metavar="DIR")
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Score every stage and snapshot of the run instead.")
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="An earlier report, to compare with; may be repeated.", metavar="SCORES.JSON"),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also write an HTML page of each project, and of their comparison.")
    ] = False,
    study: Annotated[
        bool, typer.Option("--study", help="Write a blind page on which people choose between two projects instead.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --study: a new folder for it.", metavar="DIR")] = None,
    tally: Annotated[
        bool, typer.Option("--tally", help="Count the answers to a study, given as files in place of projects.")
    ] = False,
    min_identity: Annotated[float | None, typer.Option(help="Exit with 3 if identity is below.")] = None,
    min_text: Annotated[float | None, typer.Option(help="Exit with 3 if text similarity is below.")] = None,
    max_drift: Annotated[float | None, typer.Option(help="Exit with 3 if drift is above.")] = None,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Score the concept: does it look like the pictures, and do the pictures follow the prompts?"""
    from attnbooth_cli.engine.gates import Gates
    from attnbooth_cli.engine.protocols import check_protocol, prompts_named

    console = Console(json, quiet, verbose)
    scored: dict[str, object] = {
        "--report": report, "--checkpoints": checkpoints, "--baseline": baseline, "--against": against, "--clip": clip,
        "--dino": dino, "--untuned-pictures": untuned_pictures, "--min-identity": min_identity is not None,
        "--min-text": min_text is not None, "--max-drift": max_drift is not None,
    }  # fmt: skip
    if tally:
        asking: dict[str, object] = {
            "--study": study, "--out": out, "--prompts": prompts, "-n": n is not None, "--stage": stage,
            "--protocol": protocol != "attnbooth", "--seed": seed,
        }  # fmt: skip
        _leave_out("--tally", scored | asking)
        return run_tally(console, projects)
    check_protocol(protocol)
    gates = Gates(min_identity, min_text, max_drift, drift)
    texts, prompt_set = prompts_named(prompts)

    def asked() -> EvalOptions:
        from attnbooth_cli.engine.question import EvalOptions

        return EvalOptions(
            protocol, texts, prompt_set, n, seed, clip, dino, stage, drift, baseline, untuned_pictures, device or "auto"
        )

    if study:
        _leave_out("--study", scored)
        if len(projects) != 2:
            raise InputError(f"--study needs two projects, not {len(projects)}", "attnbooth eval --study ONE OTHER")
        return run_study(console, projects, asked, out)
    if out:
        raise InputError("--out is where --study writes, and there is no --study", "leave out one of them")
    return run_scoring(
        console, projects, asked, against=against or (), gates=gates, checkpoints=checkpoints, report=report
    )


def _leave_out(flag: str, others: Mapping[str, object]) -> None:
    """Refuses options that mean nothing beside `flag`: each with its value, which is falsy where it was not given."""
    if given := [name for name, value in others.items() if value]:
        raise InputError(f"{flag} does not go with {', '.join(given)}", f"leave out {', '.join(given)}")
