"""What `attnbooth eval` says of scores, in lines that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attnbooth_cli.cli.lines import folded
from attnbooth_cli.project.shell import command

if TYPE_CHECKING:
    from attnbooth_cli.engine.comparison import Difference, Row
    from attnbooth_cli.engine.evaluation import OverTraining, Scores

SHOWN = {
    "identity": "like the training pictures",
    "held-out identity": "like pictures held out",
    "dino identity": "the same, by DINO",
    "text": "like the prompt",
    "survival": "like it, the concept left out",
    "diversity": "among pictures of one prompt",
    "drift": "of other prompts",
}


def scores_lines(scores: Scores, root: Path | None = None) -> Iterator[str]:
    """The scores of one project, which is named where there are several."""
    report = scores.report
    if root is not None:
        yield f"{root}"
    protocol, overall, references = report["protocol"], report["overall"], report["references"]
    for name, what in SHOWN.items():
        if found := overall.get(name):
            between = f"{found['low']:.4f} to {found['high']:.4f}" if found["low"] is not None else ""
            yield f"{name:18}{found['mean']:8.4f}  {between:18}{what}"
    copies = overall["copies"]
    yield f"{'copies':18}{copies['count']:8d}  {'':18}of {copies['of']} pictures"
    if references["identity"] is not None:
        yield f"  the {references['count']} training pictures among themselves: identity {references['identity']:.4f}"
    if untuned := report.get("untuned"):
        said = ", ".join(f"{name} {its['mean']:.4f}" for name, its in untuned.items() if its)
        yield from folded(f"the untuned model: {said}", "  ", "    ")
    yield from folded(
        f"{protocol['name']}: judge {protocol['judge']['ref']}, {protocol['prompts']} prompts x "
        f"{protocol['pictures_per_prompt']}, {protocol['scheduler']}, {protocol['steps']} steps",
        "  ",
        "    ",
    )
    if others := protocol["deviations"]:
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in others.items())
        yield from folded(f"not as that protocol has it: {said}", "  ", "    ")
    smoke = ", a smoke test" if report["smoke"] else ""
    told = f"run {report['run']}, after step {report['step']} of stage {report['stage']}{smoke}"
    yield from folded(told, "  ", "    ")
    yield "  identity    text  prompt"
    for row in report["per_prompt"]:
        yield from folded(row["prompt"], f"  {row['identity']:8.4f}{row['text']:8.4f}  ")
    yield f"  {scores.path}"


def over_training_lines(root: Path, found: OverTraining) -> Iterator[str]:
    """The scores of every moment of a run."""
    yield f"{'moment':18}identity    text   drift"
    for row in found.report["moments"]:
        drift = row["overall"].get("drift")
        mark = "  <- concept/" if row["name"] == found.report["current"] else ""
        moved = f"{drift['mean']:8.4f}" if drift else " " * 8
        yield f"{row['name']:18}{row['identity']:8.4f}{row['text']:8.4f}{moved}{mark}"
    yield f"  {found.plot}"
    yield f"  {found.path}"
    yield f"take another:  {command('take', root)} MOMENT"


def comparison_lines(table: tuple[Row, ...]) -> Iterator[str]:
    """Evaluations side by side."""
    if table:
        yield "compared with the first, over the same prompts and seeds"
        yield f"    {'identity':>8} {'difference':>26} {'text':>8} {'difference':>26}"
    for row in table:
        cells = [f"{row.values[name]:8.4f} {_change(row.differences.get(name)):>26}" for name in ("identity", "text")]
        yield f"  {row.name}"
        yield f"    {' '.join(cells)}".rstrip()
        for measure, why in row.withheld.items():
            yield from folded(f"{measure} has no difference: {why}", "    ", "      ")
    if any(difference.clear for row in table for difference in row.differences.values()):
        yield "  * the 95 % interval leaves out zero"


def _change(difference: Difference | None) -> str:
    """A difference with its interval, and a star if that leaves out zero."""
    if difference is None:
        return ""
    its = difference.interval
    between = f" ({its.low:+.4f}, {its.high:+.4f})" if its else ""
    return f"{difference.mean:+.4f}{between}{'*' if difference.clear else ' '}"
