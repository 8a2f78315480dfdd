"""`eval`: how well a concept came out, with everything that makes the numbers comparable beside them.

Pictures first (`gallery`), then features of them (`feature_cache`), then numbers from features (`scorecard`): each step
is kept, so that another judge, another measure or an interruption costs only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnbooth_cli.engine import concept, scores, snapshots
from attnbooth_cli.engine.alterations import ALTERATIONS, SAME_LAYOUT, layout, layouts_of_copies
from attnbooth_cli.engine.bench import Bench, as_array, open_bench
from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.methods import StageName
from attnbooth_cli.engine.prompts import DRIFT
from attnbooth_cli.engine.question import EvalOptions
from attnbooth_cli.engine.sampling import is_black
from attnbooth_cli.engine.scorecard import Features, clip_scores, picture_table, protocol_record, summary
from attnbooth_cli.errors import InputError
from attnbooth_cli.events import Emit, Warned, ignore
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.project import Project
from attnbooth_cli.project.shell import command
from attnbooth_cli.reports.curves import over_training

SCHEMA = 3
REPORT = "scores.json"
TABLE = "scores.csv"


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; `report` is the JSON document, also written to `path` (beside it, a table of pictures).

    Attributes:
        identity: Mean cosine over all pairs (training picture, generated picture).
        text: Mean cosine between generated pictures and their prompt without the placeholder token.
        drift: How far pictures of prompts without the concept have moved from the base model's; None if not asked.
        made: Pictures that were generated now; the others were there.
    """

    identity: float
    text: float
    drift: float | None
    made: int
    report: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class OverTraining:
    """Scores of every moment of a run that is on disk.

    Attributes:
        concept: Those of the moment that `concept/` is; of the last one where there is none.
        plot: A picture of all.
    """

    concept: Scores
    report: dict[str, Any]
    path: Path
    plot: Path


def evaluate(
    root: Path | str, options: EvalOptions | None = None, *, emit: Emit = ignore, pool: ComponentPool | None = None
) -> Scores:
    """Makes the pictures that are missing, and scores them.

    Args:
        pool: Shares a loaded base model between calls.

    Raises:
        InputError, DamagedError, BaseModelError, ResourceError: see `errors`.
    """
    options = options or EvalOptions()
    bench = open_bench(root, options, emit, concept.read_card, pool or ComponentPool())
    card = bench.sitting.card
    concept.verify(card, f"restore it from a copy, or make it again: {command('resume', bench.project.root)}")
    return _written(bench, _score(bench, card, card.stage(options.stage)))


def evaluate_over_training(
    root: Path | str, options: EvalOptions | None = None, *, emit: Emit = ignore
) -> OverTraining:
    """Scores the concept at every moment of its run that is on disk: the end of each stage, and snapshots.

    Raises:
        InputError, DamagedError, BaseModelError, ResourceError: see `errors`.
    """
    options = options or EvalOptions()
    if options.stage:
        raise InputError("--checkpoints scores every stage, and --stage chooses one", "leave out one of them")
    found: list[snapshots.Moment] = []

    def newest_card(project: Project) -> Card:
        found.extend(snapshots.moments(project, emit, whole=True))
        return snapshots.present(project) or found[-1].card

    bench = open_bench(root, options, emit, newest_card, ComponentPool(keep=True))
    last = snapshots.current(bench.sitting.card)
    if present := snapshots.present(bench.project):
        concept.verify(present, f"restore it from a copy, or make it again: {command('resume', bench.project.root)}")
    reports = {moment.name: _score(bench, moment.card, moment.stage) for moment in found}
    shared, row = (
        ("schema", "protocol", "run", "smoke", "base", "references"),
        ("stage", "step", "identity", "text", "overall"),
    )
    rows = [{"name": name, **{key: found[key] for key in row}} for name, found in reports.items()]
    report = {
        **{key: reports[last][key] for key in shared},
        "current": last if present else None,
        "moments": rows,
        "made": sum(found["made"] for found in reports.values()),
    }
    path = _write(bench.project, f"{bench.sitting.card.run}-over-training", report)
    plot = path.with_name("over-training.png")
    durable.write_bytes(plot, over_training(rows))
    return OverTraining(_written(bench, reports[last]), report, path, plot)


def read_report(path: Path) -> dict[str, Any]:
    """A report that `evaluate` wrote.

    Raises:
        InputError: it is no such report, or of another version.
    """
    remedy = "run eval again" if path.suffix == ".json" else f"give the {REPORT} beside it"
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        if report.get("event") == "eval":
            remedy = f"give the file it names: {report.get('report')}"
        if report["schema"] != SCHEMA:
            raise ValueError(f"schema {report['schema']}")
        rows = report["per_prompt"]
        scored = {name for row in rows for name in row["counts_for"]}
        tables = (report["protocol"], report["protocol"]["judge"], report["references"], report["overall"])
        if not rows or scored != {"identity", "text"} or not all(isinstance(its, dict) for its in tables):
            raise ValueError("it has no scores")
        if not all(isinstance(its[name], float | int) for its in (report, *rows) for name in ("identity", "text")):
            raise ValueError("a score is no number")
        if not all("prompt" in row for row in rows) or not {"sha256", "category"} <= set(report["references"]):
            raise ValueError("it does not say what was scored")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a report of this version ({error})", remedy) from None
    return dict(report)


def _refuse(constant: str) -> None:
    raise ValueError(f"a score is {constant}")


def _score(bench: Bench, card: Card, stage: StageName) -> dict[str, Any]:
    """The report of one moment."""
    sitting = bench.sitting
    question, options = sitting.question, sitting.options
    asked = [card.placeholder.prompt(text) for text in question.prompts]
    about = [text.format(category=card.placeholder.category) for text in DRIFT[sitting.base.entry.eval_prompts]]
    others = about if options.drift else []
    plain = list(bench.texts.full) if options.baseline else []
    untuned, made_untuned = sitting.untuned_pictures([*plain, *others])
    paths, made = sitting.pictures_of(card, stage, [*asked, *others])
    own, moved = paths[: len(asked)], paths[len(asked) :]
    report = {
        "schema": SCHEMA,
        **_clip_scores(bench, own),
        "protocol": protocol_record(question, bench.clip.identity, len(bench.references)),
        "run": card.run,
        "stage": stage,
        "step": card.steps(stage),
        "smoke": card.smoke,
        "base": card.document["base"],
        "device": str(sitting.device),
        "made_with": sitting.how,
        "pictures": [path.relative_to(bench.project.root).as_posix() for its in own for path in its],
        "made": made + made_untuned,
    }
    if card.smoke and not made:  # loading it, to make a picture, says so
        sitting.emit(Warned("this concept comes from a smoke test: it has hardly learned anything"))
    report["references"] |= {
        "pictures": [path.relative_to(bench.project.root).as_posix() for path in bench.references],
        "sha256": sorted(map(durable.sha256, bench.references)),
        "category": card.placeholder.category,
    }
    for rows, what in ((own, "pictures"), (moved, "pictures of other prompts"), (untuned, "base model's pictures")):
        if black := _black(rows):
            sitting.emit(Warned(f"{black} of the {what} are all black; --device cpu computes in float32"))
    if _black([*moved, *untuned[len(plain) :]]) and moved:
        sitting.emit(Warned("drift is not measured: it would be of pictures that show nothing"))
        moved = []
    for name, judge, references in (
        ("held-out identity", bench.clip, bench.held_out),
        ("dino identity", bench.dino, bench.references),
    ):
        if judge and references:
            its = bench.training_features(judge, references)
            values = np.stack([scores.identity(its, row) for row in bench.features(judge, own)])
            counted = [prompt in question.identity_prompts for prompt in question.prompts]
            report["overall"][name] = {
                **(summary(values[counted]) or {}),
                "judge": judge.identity,
                "sha256": sorted(map(durable.sha256, references)),
            }
    if moved:
        pairs = zip(*(bench.features(bench.clip, its) for its in (untuned[len(plain) :], moved)), strict=True)
        values = np.stack([scores.drift(*pair) for pair in pairs])
        report["overall"]["drift"] = summary(values)
        report["drift_pairs"] = [
            {"prompt": prompt, "seed": seed, "drift": float(value)}
            for prompt, row in zip(others, values, strict=True)
            for seed, value in zip(question.seeds, row, strict=True)
        ]
    if plain:
        found = _clip_scores(bench, untuned[: len(plain)])["overall"]
        report["untuned"] = {name: found[name] for name in ("identity", "text", "survival", "diversity")}
    return report


def _black(rows: Sequence[Sequence[Path]]) -> int:
    return sum(is_black(pictures.load(path)) for its in rows for path in its)


def _clip_scores(bench: Bench, paths: Sequence[Sequence[Path]]) -> dict[str, Any]:
    """`paths` prompt by prompt."""
    judge, texts = bench.clip, bench.texts
    layouts = np.stack([layout(pictures.load(path)) for row in paths for path in row])  # [pn, d]
    of_copies = [layouts_of_copies(pictures.load(path)) for path in bench.references]  # r of [a, d]
    found = Features(
        bench.training_features(judge, bench.references),
        np.stack([bench.training_features(judge, bench.references, alteration) for alteration in ALTERATIONS]),
        bench.features(judge, paths),
        np.stack([(layouts @ its.T).max(1) for its in of_copies], 1) >= SAME_LAYOUT,
        as_array(judge.texts(texts.full)),
        as_array(judge.texts([rest or "" for rest in texts.rest])),
    )
    return clip_scores(bench.sitting.question, texts, found, [path.name for path in bench.references])


def _written(bench: Bench, report: dict[str, Any]) -> Scores:
    """Scores, with their report on disk."""
    path = _write(bench.project, f"{report['run']}-{report['stage']}", report)
    durable.write_text(path.with_name(TABLE), picture_table(report))
    drift = report["overall"].get("drift")
    return Scores(report["identity"], report["text"], drift["mean"] if drift else None, report["made"], report, path)


def _write(project: Project, name: str, report: dict[str, Any]) -> Path:
    path = durable.claim_directory(project.evaluation, name) / REPORT
    durable.write_text(path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")
    return path
