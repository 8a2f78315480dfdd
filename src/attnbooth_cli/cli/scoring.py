"""`attnbooth eval` as it scores: project after project, then all side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbooth_cli.cli.console import Console, printable
from attnbooth_cli.cli.each import each_project, in_one_document
from attnbooth_cli.cli.first_use import heavy_imports
from attnbooth_cli.cli.lines import folded
from attnbooth_cli.cli.scores import comparison_lines, over_training_lines, scores_lines
from attnbooth_cli.engine.gates import Gates
from attnbooth_cli.project.project import Project

if TYPE_CHECKING:
    from attnbooth_cli.engine.question import EvalOptions


def run_scoring(
    console: Console,
    projects: list[Path],
    asked: Callable[[], EvalOptions],
    *,
    against: Sequence[Path],
    gates: Gates,
    checkpoints: bool,
    report: bool,
) -> int:
    """Scores projects, compares them, and holds each against the gates.

    Args:
        asked: What the options say; called once torch may be loaded.
        against: Earlier reports to compare with.
        checkpoints: Score every moment of each run.
        report: Write pages too.
    """
    from attnbooth_cli.cli.progress import shown
    from attnbooth_cli.cli.signals import stop_at_once

    with heavy_imports():
        from attnbooth_cli.engine import evaluation
        from attnbooth_cli.engine.comparison import side_by_side
    from attnbooth_cli.reports.eval_page import write_comparison_page, write_eval_page

    question = asked()
    reports = {str(path): evaluation.read_report(path) for path in against}
    results: list[dict[str, Any]] = []

    def one(root: Path) -> None:
        with (
            stop_at_once("the same command goes on; pictures that are there are not made again"),
            shown(console) as emit,
        ):
            over_training = evaluation.evaluate_over_training(root, question, emit=emit) if checkpoints else None
            found = over_training.concept if over_training else evaluation.evaluate(root, question, emit=emit)
        named = root if len(projects) > 1 else None
        document = {name: value for name, value in found.report.items() if name != "schema"}
        results.append({"project": str(root), **document, "report": str(found.path)})
        reports[str(root)] = found.report
        if over_training:
            results[-1]["over_training"] = {
                **over_training.report, "report": str(over_training.path), "plot": str(over_training.plot),
            }  # fmt: skip
        for line in (*(over_training_lines(root, over_training) if over_training else ()), *scores_lines(found, named)):
            console.result(printable(line))
        if report:
            known, why_not = side_by_side(reports)
            page = write_eval_page(
                found.path.parent,
                root,
                found.report,
                over_training=over_training.report if over_training else None,
                comparison=[dataclasses.asdict(row) for row in known],
                not_compared=why_not,
            )
            results[-1]["page"] = str(page)
            console.result(printable(f"  {page}"))
        there = over_training is None or over_training.report["current"] is not None
        gates.check(found.identity, found.text, found.drift, of_concept=there)

    code = each_project(console, projects, one, in_one_document(console, results, len(projects)))
    table, why_not = side_by_side(reports)
    for line in comparison_lines(table):
        console.result(printable(line))
    missing = [f"{root} was not scored" for root in projects if str(root) not in reports]
    if missing and len(projects) + len(reports) > 2:
        why_not = "; ".join([*missing, *([why_not] if why_not else [])])
    if why_not:
        told = f"{'left out of the comparison' if table else 'no comparison'}: {why_not}"
        if console.quiet:  # it is an answer to what was asked
            for line in folded(told, "", "  "):
                console.result(printable(line))
        else:
            console.warning(told)
    rows = [dataclasses.asdict(row) for row in table]
    extra: dict[str, Any] = {"comparison": rows} if rows else {}
    if why_not:
        extra = {"comparison": rows or None, "not_compared": why_not}
    first = next((root for root in projects if str(root) in reports), None)
    if report and first and len(projects) > 1 and (rows or why_not):
        extra["comparison_page"] = str(write_comparison_page(Project(first).evaluation, rows, why_not))
        console.result(printable(f"  {extra['comparison_page']}"))
    if len(projects) == 1 and results:
        head = {"project": None, "run": None, **results[0], **extra}
        console.document("eval", head.pop("project"), head.pop("run"), exit_code=code, **head)
    elif len(projects) > 1:
        console.document("eval", None, None, exit_code=code, results=results, **extra)
    return code
