"""The page about a run, `runs/NAME/report.html`: what was learned, how it went, and how to go on.

It is made from the run's own files (plan.json, events.jsonl) and the pictures they name, so that a run that was stopped
and resumed gets the same page as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from attnbooth_cli.engine.history import History, Sample, Step, read_history
from attnbooth_cli.engine.plan import Plan, settings_of
from attnbooth_cli.engine.runs import RunFolder
from attnbooth_cli.engine.tokens import Placeholder
from attnbooth_cli.errors import BoothError
from attnbooth_cli.project import pictures
from attnbooth_cli.project.documents import read_json_object
from attnbooth_cli.project.samples import read_metadata
from attnbooth_cli.project.shell import command, generate_command
from attnbooth_cli.reports import page
from attnbooth_cli.reports.charts import Band, line_chart
from attnbooth_cli.reports.units import duration

MOST_SAMPLES = 120
"""Samples on the page; of more, evenly chosen ones, and the end of every stage."""
THUMBNAIL = 192
"""Pixels of a training picture, at most."""
PROMPT = "a photo of a {} on a beach"
"""Of the commands that go on."""


def write_training_report(
    folder: RunFolder,
    plan: Plan,
    placeholder: Placeholder,
    finished: Sequence[str],
    training_pictures: Sequence[Path],
    seconds: float,
    *,
    is_current: bool,
) -> Path:
    """Writes the page.

    Args:
        finished: The stages that are done.
        seconds: How long the run has been going on since it was last begun or continued.
        is_current: Whether `concept/` holds what this run learned, so that commands on the project speak of it.

    Raises:
        ResourceError, OSError: it cannot be written, or the events cannot be read.
    """
    history = read_history(folder.events, seconds)
    record = read_json_object(folder.plan) or {}
    versions = record.get("versions")
    samples = _chosen(history.samples, plan)
    count = len(training_pictures) + len(samples)
    remaining = [stage.name for stage in plan.stages_until(None) if stage.name not in finished]
    return page.write_page(
        folder.report,
        "train.html",
        title=f"{plan.concept.name}: {folder.name}",
        smoke=plan.smoke,
        is_current=is_current,
        remaining=remaining,
        facts=_facts(folder, plan, history, record),
        pictures=_training_pictures(training_pictures, plan.concept.category, count),
        charts=charts(history, plan),
        stages=[
            {"name": stage.name, "samples": shown}
            for stage in plan.stages
            if (shown := _samples(folder, plan, placeholder, samples, stage.name, count, is_current))
        ],
        rounded=plan.save_precision == "float16" and "unet" in finished,
        left_out=len(history.samples) - len(samples),
        commands=_commands(folder, remaining, is_current),
        times=_times(history),
        spent=_spent(history),
        starts=history.starts,
        total=history.seconds,
        settings=[_row(key, value, origin) for key, (value, origin) in settings_of(plan).items()],
        versions={**(versions if isinstance(versions, dict) else {}), "threads": record.get("threads")},
    )


def charts(history: History, plan: Plan) -> list[Markup]:
    """The curves of the losses, stage after stage."""
    planned: dict[str, int] = {stage.name: stage.steps for stage in plan.stages}
    bands: list[Band] = []
    for stage in history.stages:
        start = bands[-1].end if bands else 0
        bands.append(Band(stage, start, start + planned[stage]))
    starts = {band.name: band.start for band in bands}

    def curve(value: Callable[[Step], float | None]) -> list[tuple[float, float]]:
        found = ((starts[step.stage] + step.step, value(step)) for step in history.steps)
        return [(place, number) for place, number in found if number is not None]

    drawn = [line_chart("Diffusion loss", {"loss": curve(lambda step: step.diffusion)}, bands=bands)]
    if any(step.attention for step in history.steps):
        of_attention = {
            "attention loss": curve(lambda step: step.attention),
            "mean term": curve(lambda step: step.attention_mean or None),
            "variance term": curve(lambda step: step.attention_variance or None),
        }
        drawn.append(line_chart("Attention loss and its terms", of_attention, log=True, bands=bands))
    if any(step.prior for step in history.steps):
        drawn.append(line_chart("Prior loss", {"loss": curve(lambda step: step.prior)}, bands=bands))
    return drawn


def _facts(folder: RunFolder, plan: Plan, history: History, record: dict[str, Any]) -> dict[str, object]:
    return {
        "Concept": plan.concept.name,
        "Token": plan.concept.token,
        "Category": plan.concept.category,
        "Base model": plan.base.model,
        "Revision": plan.base.revision,
        "Method": plan.method,
        "Pictures": len(plan.pictures),
        "Resolution": f"{plan.resolution} pixels",
        "Seed": plan.seed,
        "Computed on": f"{history.device}, {history.precision}" if history.device else None,
        "Run": folder.name,
        "Begun": _minute(str(record.get("created", ""))),
        "Time": duration(history.seconds),
    }


def _minute(moment: str) -> str | None:
    """`2026-01-31T12:30:05+00:00` -> "2026-01-31 12:30 UTC"."""
    return f"{moment[:16].replace('T', ' ')} UTC" if moment else None


def _training_pictures(paths: Sequence[Path], category: str, count: int) -> list[dict[str, Any]]:
    side = min(page.side_for(count), THUMBNAIL)
    shown = ((path, _loaded(path)) for path in paths)
    return [
        {
            "src": page.embedded(picture, side, count),
            "small": page.is_small(picture),
            "alt": f"Training picture of the {category}: {path.name}",
            "name": path.name,
        }
        for path, picture in shown
        if picture
    ]


def _chosen(samples: Sequence[Sample], plan: Plan) -> list[Sample]:
    """At most about `MOST_SAMPLES` of them."""
    apart = -(-len(samples) // MOST_SAMPLES) or 1
    ends = {(stage.name, stage.steps) for stage in plan.stages}
    return [its for index, its in enumerate(samples) if index % apart == 0 or (its.stage, its.step) in ends]


def _samples(
    folder: RunFolder,
    plan: Plan,
    placeholder: Placeholder,
    samples: Sequence[Sample],
    stage: str,
    count: int,
    is_current: bool,
) -> list[dict[str, Any]]:
    """A stage's samples, with the command that makes one again where the concept as it was then is kept."""
    steps = next(planned.steps for planned in plan.stages if planned.name == stage)
    shown = []
    for sample in samples:
        path = folder.project.samples / sample.name
        picture = _loaded(path) if sample.stage == stage else None
        if picture is None:
            continue
        prompt = sample.prompt.replace(placeholder.prompt("{}"), "{}")
        kept = is_current and sample.step == steps
        shown.append(
            {
                "src": page.embedded(picture, page.side_for(count), count),
                "small": page.is_small(picture),
                "alt": f"Sample after step {sample.step} of stage {stage}: {sample.prompt}",
                "step": sample.step,
                "prompt": sample.prompt,
                "seed": sample.seed,
                "command": _sample_command(folder.project.root, prompt, stage, path) if kept else None,
            }
        )
    return shown


def _sample_command(root: Path, prompt: str, stage: str, path: Path) -> str | None:
    """With the settings the sample carries; None if it does not."""
    try:
        metadata = read_metadata(path) or {}
        settings = {name: metadata[name] for name in _SETTINGS}
        return generate_command(root, prompt, stage=stage, **settings)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, AttributeError, OverflowError):
        return None


_SETTINGS = ("seed", "steps", "guidance", "width", "height", "scheduler", "negative")


def _loaded(path: Path) -> Image.Image | None:
    """A picture, or None where it is gone or damaged: the page is about a run, not about this file."""
    try:
        return pictures.load(path)
    except (BoothError, OSError):
        return None


def _commands(folder: RunFolder, remaining: Sequence[str], is_current: bool) -> list[tuple[str, str]]:
    """What to do next, and the command that does it."""
    root = folder.project.root
    rest = [(f"The stages that are left ({', '.join(remaining)})", command("resume", root))] if remaining else []
    if not is_current:
        return rest
    return [
        *rest,
        ("Pictures, with a page about them", command("generate", root, PROMPT, "-n", 4, "--report")),
        ("Scores: like the pictures, and true to the prompts?", command("eval", root)),
        ("Where each word of a prompt looks", command("inspect-attn", root, PROMPT)),
    ]


def _times(history: History) -> list[list[dict[str, object]]]:
    rows: list[list[dict[str, object]]] = []
    for its in history.times:
        rows.append(
            [
                {"text": its.stage},
                {"text": its.steps},
                {"text": f"{its.per_step:.3g} s", "sort": its.per_step},
                {"text": duration(its.seconds), "sort": its.seconds},
            ]
        )
    return rows


def _spent(history: History) -> list[list[dict[str, object]]]:
    """Where the time went; what no event tells of is the rest."""
    known = {name: seconds for name, seconds in history.spent.items() if seconds}
    rest = max(0.0, history.seconds - sum(known.values()))
    whole = max(history.seconds, sum(known.values())) or 1.0
    everything = {**known, "the rest: loading, a trial step, writing the concept": rest}
    return [
        [
            {"text": name},
            {"text": duration(seconds), "sort": seconds},
            {"text": f"{seconds / whole:.0%}", "sort": seconds},
        ]
        for name, seconds in everything.items()
    ]


def _row(key: str, value: object, origin: str) -> list[dict[str, object]]:
    return [{"text": key}, {"text": "-" if value is None else value}, {"text": origin}]
