"""`attnbooth eval`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console, printable
from attnbooth_cli.cli.each import each_project, in_one_document

if TYPE_CHECKING:
    from attnbooth_cli.engine.comparison import Difference, Row
    from attnbooth_cli.engine.evaluation import OverTraining, Scores


def evaluate(
    projects: options.Projects,
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
    min_identity: Annotated[float | None, typer.Option(help="Exit with 3 if identity is below.")] = None,
    min_text: Annotated[float | None, typer.Option(help="Exit with 3 if text similarity is below.")] = None,
    max_drift: Annotated[float | None, typer.Option(help="Exit with 3 if drift is above.")] = None,
    device: options.Device = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Score the concept: does it look like the pictures, and do the pictures follow the prompts?"""
    from attnbooth_cli.cli.progress import shown
    from attnbooth_cli.cli.signals import stop_at_once
    from attnbooth_cli.engine.gates import Gates
    from attnbooth_cli.engine.protocols import check_protocol, prompts_named

    console = Console(json, quiet, verbose)
    check_protocol(protocol)
    gates = Gates(min_identity, min_text, max_drift, drift)
    texts, prompt_set = prompts_named(prompts)
    from attnbooth_cli.engine import evaluation  # torch, which a mistake need not wait for
    from attnbooth_cli.engine.comparison import side_by_side
    from attnbooth_cli.engine.question import EvalOptions

    asked = EvalOptions(
        protocol, texts, prompt_set, n, seed, clip, dino, stage, drift, baseline, untuned_pictures, device or "auto"
    )
    reports = {str(path): evaluation.read_report(path) for path in against or ()}
    results: list[dict[str, Any]] = []

    def one(root: Path) -> None:
        with stop_at_once(), shown(console) as emit:
            over_training = evaluation.evaluate_over_training(root, asked, emit=emit) if checkpoints else None
            found = over_training.concept if over_training else evaluation.evaluate(root, asked, emit=emit)
        document = {name: value for name, value in found.report.items() if name != "schema"}
        results.append({"project": str(root), **document, "report": str(found.path)})
        reports[str(root)] = found.report
        if over_training:
            results[-1]["over_training"] = {
                **over_training.report, "report": str(over_training.path), "plot": str(over_training.plot),
            }  # fmt: skip
        for line in (*(_over_training(root, over_training) if over_training else ()), *_scores(found)):
            console.result(printable(line))
        gates.check(found.identity, found.text, found.drift)

    code = each_project(console, projects, one, in_one_document(console, results, len(projects)))
    table, why_not = side_by_side(reports)
    for line in _comparison(table):
        console.result(printable(line))
    if why_not:
        console.warning(f"no comparison: {why_not}")
    extra: dict[str, Any] = {"comparison": [dataclasses.asdict(row) for row in table]} if table else {}
    if why_not:
        extra = {"comparison": None, "not_compared": why_not}
    if len(projects) == 1 and results:
        head = {"project": None, "run": None, **results[0], **extra}
        console.document("eval", head.pop("project"), head.pop("run"), exit_code=code, **head)
    elif len(projects) > 1:
        console.document("eval", None, None, exit_code=code, results=results, **extra)
    return code


def _scores(scores: Scores) -> Iterator[str]:
    report = scores.report
    protocol, overall, references = report["protocol"], report["overall"], report["references"]
    for name, what in _SHOWN.items():
        if found := overall.get(name):
            between = f"{found['low']:.4f} to {found['high']:.4f}" if found["low"] is not None else ""
            yield f"{name:18}{found['mean']:8.4f}  {between:18}{what}"
    copies = overall["copies"]
    yield f"{'copies':18}{copies['count']:8d}  {'':18}of {copies['of']} pictures"
    if references["identity"] is not None:
        yield f"  the {references['count']} training pictures among themselves: identity {references['identity']:.4f}"
    if untuned := report.get("untuned"):
        yield "  the untuned model: " + ", ".join(f"{name} {its['mean']:.4f}" for name, its in untuned.items() if its)
    yield (
        f"  {protocol['name']}: judge {protocol['judge']['ref']}, {protocol['prompts']} prompts x "
        f"{protocol['pictures_per_prompt']}, {protocol['scheduler']}, {protocol['steps']} steps"
    )
    yield f"  run {report['run']}, after step {report['step']} of stage {report['stage']}"
    yield "  identity    text  prompt"
    for row in report["per_prompt"]:
        yield f"  {row['identity']:8.4f}{row['text']:8.4f}  {row['prompt']}"
    yield f"  {scores.path}"


def _over_training(root: Path, found: OverTraining) -> Iterator[str]:
    yield f"{'moment':18}identity    text   drift"
    for row in found.report["moments"]:
        drift = row["overall"].get("drift")
        mark = "  <- concept/" if row["name"] == found.report["current"] else ""
        moved = f"{drift['mean']:8.4f}" if drift else " " * 8
        yield f"{row['name']:18}{row['identity']:8.4f}{row['text']:8.4f}{moved}{mark}"
    yield f"  {found.plot}"
    yield f"  {found.path}"
    yield f"take another:  attnbooth take {root} MOMENT"


def _comparison(table: tuple[Row, ...]) -> Iterator[str]:
    if table:
        yield "compared with the first, over the same prompts and seeds"
        yield f"  {'identity':>8} {'difference':>27} {'text':>8} {'difference':>27}"
    for row in table:
        cells = [f"{row.values[name]:8.4f} {_change(row.differences.get(name)):>27}" for name in ("identity", "text")]
        yield f"  {' '.join(cells)}"
        yield f"    {row.name}"
    if table:
        yield "  * the 95 % interval leaves out zero"


def _change(difference: Difference | None) -> str:
    """A difference with its interval, and a star if that leaves out zero."""
    if difference is None:
        return ""
    its = difference.interval
    between = f" ({its.low:+.4f}, {its.high:+.4f})" if its else ""
    return f"{difference.mean:+.4f}{between}{'*' if difference.clear else ' '}"


_SHOWN = {
    "identity": "like the training pictures",
    "held-out identity": "like pictures held out",
    "dino identity": "the same, by DINO",
    "text": "like the prompt",
    "survival": "like it, the concept left out",
    "diversity": "among pictures of one prompt",
    "drift": "of other prompts",
}
