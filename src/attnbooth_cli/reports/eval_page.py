"""The page of an evaluation: `eval/NAME/report.html`, from the document beside it (`scores.json`) and the pictures.

Everything on it is in that document; the page adds what each number means, and the pictures behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbooth_cli.project import durable
from attnbooth_cli.project.pictures import load
from attnbooth_cli.project.shell import generate_command
from attnbooth_cli.reports import page
from attnbooth_cli.reports.cells import Cell, Column, Rows, number, whole, words
from attnbooth_cli.reports.charts import Band, line_chart

PAGE = "report.html"
MOST_PICTURES = 400
"""On one page; of more, the first of each prompt are shown."""
MEANINGS = {
    "identity": "How much the pictures look like the training pictures: the mean cosine of CLIP's features.",
    "held-out identity": "The same, against pictures that training never saw.",
    "dino identity": "The same, by DINO, which looks at the individual more than at the kind.",
    "text": "How well the pictures follow their prompts, the concept's token left out.",
    "survival": "How much of scene and style is left: likeness to the prompt without the concept.",
    "diversity": "How different the pictures of one prompt are: one minus their mean cosine.",
    "drift": "How far pictures of prompts without the concept have moved from the base model's.",
}
COPIES = "Pictures as near a training picture as that picture mirrored, closer or softer, and laid out like it."
CURVES = ("identity", "text", "drift")


def write_eval_page(
    folder: Path,
    project: Path,
    report: Mapping[str, Any],
    *,
    over_training: Mapping[str, Any] | None = None,
    comparison: Sequence[Mapping[str, Any]] = (),
    not_compared: str | None = None,
) -> Path:
    """Writes the page of one evaluation.

    Args:
        folder: Where its `scores.json` is.
        project: As the person names it: the commands say it so.
        over_training: The report of `--checkpoints`.
        comparison: Rows of a comparison this evaluation is in; `not_compared` is why there is none.

    Raises:
        ResourceError: it cannot be written.
    """
    shown = pictures_shown(report)
    references = [str(name) for name in report["references"]["pictures"]]
    side = page.side_for(sum(len(its) for its in shown) + len(references))
    in_concept = over_training is None or over_training["current"] is not None
    prompts = [
        _prompt(index, row, its, project, report, references, side, in_concept)
        for index, (row, its) in enumerate(zip(report["per_prompt"], shown, strict=True))
    ]
    protocol = report["protocol"]
    return page.write_page(
        folder / PAGE,
        "eval.html",
        ["eval.js"],
        title=f"Scores of {project.resolve().name}",
        report=report,
        overall=_overall(report),
        protocol=_protocol(report),
        details=_details(report),
        references=[
            {"src": page.embedded(load(project / name), side), "name": Path(name).name, "id": f"reference-{index}"}
            for index, name in enumerate(references)
        ],
        groups=_groups(report),
        by_prompt=_by_prompt(report),
        prompts=prompts,
        by_picture=_by_picture(prompts),
        left_out=sum(len(row["pictures"]) for row in report["per_prompt"]) - sum(len(its) for its in shown),
        exact=max(protocol["width"], protocol["height"]) <= page.SMALL_SIDE,
        in_concept=in_concept,
        drift=_drift(report),
        charts=_charts(over_training),
        moments=_moments(over_training),
        current=over_training and over_training["current"],
        comparison=compared(comparison),
        not_compared=not_compared,
    )


def write_comparison_page(evaluation: Path, comparison: Sequence[Mapping[str, Any]], not_compared: str | None) -> Path:
    """Writes a page that holds the comparison of several evaluations alone.

    Args:
        evaluation: The `eval/` of one of the projects; the page gets a new folder in it.

    Raises:
        ResourceError: it cannot be written.
    """
    return page.write_page(
        durable.claim_directory(evaluation, "comparison") / PAGE,
        "comparison.html",
        title="Scores side by side",
        comparison=compared(comparison),
        not_compared=not_compared,
    )


def pictures_shown(report: Mapping[str, Any]) -> list[list[str]]:
    """The pictures of each prompt that its page shows, as paths in the project."""
    n = report["protocol"]["pictures_per_prompt"]
    most = min(n, max(1, MOST_PICTURES // len(report["per_prompt"])))
    return [report["pictures"][start : start + most] for start in range(0, len(report["pictures"]), n)]


def command_again(project: Path, report: Mapping[str, Any], prompt: str, seed: int) -> str:
    """The command that makes a scored picture again, as long as the project's concept is the one that was scored."""
    names = ("steps", "guidance", "width", "height", "scheduler", "negative")
    settings = {name: report["protocol"][name] for name in names}
    return generate_command(project, prompt, seed=seed, stage=report["stage"], device=report["device"], **settings)


def compared(comparison: Sequence[Mapping[str, Any]]) -> Rows | None:
    """The table of a comparison; None where there is nothing to compare."""
    if not comparison:
        return None
    columns = [Column("evaluation", wide=True)]
    for measure in ("identity", "text"):
        columns += [Column(measure, True), Column("difference", True), Column("95 % interval", True)]
    columns.append(Column("prompts", True))
    rows = []
    for row in comparison:
        cells = [words(row["name"])]
        for measure in ("identity", "text"):
            its = row["differences"].get(measure)
            why_not = row["withheld"].get(measure)
            change = words(why_not) if why_not else number(its and its["mean"], signed=True)
            cells += [number(row["values"][measure]), change, _interval(its)]
        counts = ", ".join(dict.fromkeys(str(its["prompts"]) for its in row["differences"].values()))
        rows.append([*cells, words(counts)])
    return Rows(columns, rows)


def _interval(difference: Mapping[str, Any] | None) -> Cell:
    """Of a difference, with a star where it leaves out zero."""
    if not difference or not difference["interval"]:
        return words("")
    low, high = difference["interval"]["low"], difference["interval"]["high"]
    return words(f"{low:+.4f} to {high:+.4f}{'' if low <= 0 <= high else ' *'}")


def _overall(report: Mapping[str, Any]) -> Rows:
    untuned = report.get("untuned")
    columns = [Column("score"), Column("mean", True), Column("95 % interval", True), Column("prompts", True)]
    if untuned:
        columns.append(Column("untuned model", True))
    rows = []
    for name, meaning in MEANINGS.items():
        if its := report["overall"].get(name):
            cells = [words(name), number(its["mean"]), _between(its), whole(its["prompts"])]
            if untuned:
                cells.append(number((untuned.get(name) or {}).get("mean")))
            rows.append([*cells, words(meaning)])
    copies = report["overall"]["copies"]
    empty = [words("")] * (len(columns) - 2)
    rows.append([words("copies"), words(f"{copies['count']} of {copies['of']}"), *empty, words(COPIES)])
    return Rows([*columns, Column("what it says", wide=True)], rows)


def _between(summary: Mapping[str, Any]) -> Cell:
    if summary["low"] is None:
        return words("too few prompts")
    over = " (over its pictures)" if summary["over"] == "pictures" else ""
    return words(f"{summary['low']:.4f} to {summary['high']:.4f}{over}")


def _protocol(report: Mapping[str, Any]) -> dict[str, Any]:
    its = report["protocol"]
    seeds = its["seeds"]
    return {
        "protocol": its["name"],
        "judge": its["judge"]["ref"],
        "prompts": f"{its['prompts']} x {its['pictures_per_prompt']} pictures",
        "seeds": f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else seeds[0],
        "sampler": f"{its['scheduler']}, {its['steps']} steps, guidance {its['guidance']:g}",
        "size": f"{its['width']} x {its['height']}",
        "training pictures": its["references"],
        "base model": report["base"]["model"],
        "run": f"{report['run']}, step {report['step']} of stage {report['stage']}",
        "set otherwise than the protocol": ", ".join(f"{key}: {value}" for key, value in its["deviations"].items())
        or "nothing",
    }


def _details(report: Mapping[str, Any]) -> dict[str, Any]:
    """What else makes scores comparable: where the protocol is from, and judges and base model by their weights."""
    its = report["protocol"]
    second = (report["overall"].get("dino identity") or {}).get("judge") or {}
    return {
        "protocol": its["source"],
        "negative prompt": its["negative"] or None,
        **{f"judge, {key}": _plain(value) for key, value in its["judge"].items()},
        **{f"second judge, {key}": _plain(value) for key, value in second.items()},
        **{f"base model, {key}": _plain(value) for key, value in report["base"].items()},
        "device": report["device"],
    }


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def _groups(report: Mapping[str, Any]) -> Rows:
    columns = [Column("group")]
    for measure in ("identity", "text"):
        columns += [Column(measure, True), Column("95 % interval", True)]
    rows = []
    for group, its in report["groups"].items():
        cells = [words(group)]
        for measure in ("identity", "text"):
            found = its[measure]
            cells += [number(found["mean"]), _between(found)] if found else [words(""), words("not scored")]
        rows.append(cells)
    return Rows(columns, rows)


def _by_prompt(report: Mapping[str, Any]) -> Rows:
    names = ("identity", "text", "diversity", "survival", "copies")
    rows = [
        [
            Cell(row["prompt"], href=f"#prompt-{index}"),
            words(row["group"]),
            *(number(row[name]) for name in names[:-1]),
            whole(sum(its["copy"] for its in row["pictures"])),
        ]
        for index, row in enumerate(report["per_prompt"])
    ]
    return Rows([Column("prompt", wide=True), Column("group"), *(Column(name, True) for name in names)], rows)


def _prompt(
    index: int,
    row: Mapping[str, Any],
    paths: Sequence[str],
    project: Path,
    report: Mapping[str, Any],
    references: Sequence[str],
    side: int,
    in_concept: bool,
) -> dict[str, Any]:
    """One prompt with its pictures."""
    names = [Path(name).name for name in references]
    pictures = [
        {
            **its,
            "id": f"picture-{index}-{its['seed']}",
            "prompt": row["prompt"],
            "src": page.embedded(project / path, side),
            "reference": names.index(its["nearest"]),
            "command": command_again(project, report, row["prompt"], its["seed"]) if in_concept else None,
        }
        for its, path in zip(row["pictures"], paths, strict=False)
    ]
    return {"id": f"prompt-{index}", **row, "pictures": pictures}


def _by_picture(prompts: Sequence[Mapping[str, Any]]) -> Rows:
    rows = [
        [
            Cell(prompt["prompt"], href=f"#{its['id']}"),
            whole(its["seed"]),
            number(its["identity"]),
            number(its["text"]),
            Cell(its["nearest"], href=f"#reference-{its['reference']}"),
            number(its["nearest_cosine"]),
            words(f"of {its['copy_of']}" if its["copy"] else ""),
        ]
        for prompt in prompts
        for its in prompt["pictures"]
    ]
    columns = [Column("prompt", wide=True), *(Column(name, True) for name in ("seed", "identity", "text"))]
    return Rows([*columns, Column("nearest training picture"), Column("its cosine", True), Column("copy")], rows)


def _drift(report: Mapping[str, Any]) -> Rows | None:
    pairs = report.get("drift_pairs")
    if not pairs:
        return None
    rows = [[words(pair["prompt"]), whole(pair["seed"]), number(pair["drift"])] for pair in pairs]
    return Rows([Column("prompt", wide=True), Column("seed", True), Column("drift", True)], rows)


def _charts(over_training: Mapping[str, Any] | None) -> list[Any]:
    """Identity, text and drift over training, each on its own scale: what matters is how they move."""
    if over_training is None:
        return []
    moments, bands = list(_along(over_training["moments"])), _bands(over_training["moments"])
    found = []
    for measure in CURVES:
        known = [(x, its) for x, moment in moments if (its := moment["overall"].get(measure))]
        sure = [(x, its["low"], its["high"]) for x, its in known if its["low"] is not None]
        if known:
            points = {measure: [(x, its["mean"]) for x, its in known]}
            found.append(line_chart(measure, points, bands=bands, marked=True, whiskers={measure: sure}))
    return found


def _along(moments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each moment with its steps since the run began."""
    before = {band.name: int(band.start) for band in _bands(moments)}
    for moment in moments:
        yield before[moment["stage"]] + moment["step"], moment


def _bands(moments: Sequence[Mapping[str, Any]]) -> list[Band]:
    """The stages, one after the other."""
    ends: dict[str, int] = {}
    for moment in moments:
        ends[moment["stage"]] = max(moment["step"], ends.get(moment["stage"], 0))
    bands, start = [], 0
    for stage, steps in ends.items():
        bands.append(Band(stage, start, start + steps))
        start += steps
    return bands


def _moments(over_training: Mapping[str, Any] | None) -> Rows | None:
    if over_training is None:
        return None
    measured = [name for name in CURVES if any(its["overall"].get(name) for its in over_training["moments"])]
    rows = []
    for place, moment in enumerate(over_training["moments"]):
        overall = moment["overall"]
        cells = [Cell(moment["name"], place)]
        for measure in measured:
            its = overall.get(measure)
            cells += [number(its["mean"]), _between(its)] if its else [words(""), words("")]
        copies = overall["copies"]
        here = "concept/" if moment["name"] == over_training["current"] else ""
        rows.append([*cells, whole(copies["count"]), words(here)])
    columns = [Column("moment")]
    for measure in measured:
        columns += [Column(measure, True), Column("95 % interval", True)]
    return Rows([*columns, Column("copies", True), Column("is now")], rows)
