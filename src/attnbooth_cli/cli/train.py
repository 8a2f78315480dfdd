"""`attnbooth train` and `attnbooth resume`."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attnbooth_cli.cli import options
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.each import each_project
from attnbooth_cli.cli.first_use import heavy_imports
from attnbooth_cli.cli.init import summary
from attnbooth_cli.cli.inline import show_pictures
from attnbooth_cli.cli.layout import command_lines, outlook_lines, path_lines, settings_lines, wrapped
from attnbooth_cli.cli.many import chosen_projects, crew_of, reporter, spread, until_refused
from attnbooth_cli.cli.outcomes import Outcome, close, failed, succeeded
from attnbooth_cli.cli.streams import BROKEN_PIPE
from attnbooth_cli.engine.cluster_head import RETRIES, ShouldStop
from attnbooth_cli.engine.cluster_worker import Work
from attnbooth_cli.errors import BoothError, StoppedError
from attnbooth_cli.project.project import open_project
from attnbooth_cli.project.shell import command

if TYPE_CHECKING:
    from attnbooth_cli.engine.families import ComponentPool
    from attnbooth_cli.engine.initialisation import Declaration
    from attnbooth_cli.engine.methods import StageName
    from attnbooth_cli.engine.preparation import TrainOptions
    from attnbooth_cli.events import Emit, Finished


def train(
    projects: options.SomeProjects = None,
    listed: options.ProjectList = None,
    fast: Annotated[bool, typer.Option("--fast", help="The paper's fast mode: stage 3 in 200 steps of 4.")] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="attndreambooth by default; textual-inversion, dreambooth, ti-db, lora, oft, neti, vico, or an "
            "ablation or addition (docs/fidelity.md). [env: ATTNBOOTH_TRAIN_METHOD]"
        ),
    ] = None,
    until: Annotated[options.Stage | None, typer.Option(help="The last stage to do.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Two steps a stage: does everything work here?")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every setting and its origin, memory and time needed; do nothing.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="[env: ATTNBOOTH_TRAIN_SEED; default: 0]")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto by default. [env: ATTNBOOTH_TRAIN_DEVICE]"),
    ] = None,
    precision: Annotated[
        options.Precision | None, typer.Option(help="auto by default. [env: ATTNBOOTH_TRAIN_PRECISION]")
    ] = None,
    save_precision: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option(help="Of the saved U-Net; float16 by default. [env: ATTNBOOTH_TRAIN_SAVE_PRECISION]"),
    ] = None,
    sample_every: Annotated[
        int | None, typer.Option(min=0, help="A sample picture every N steps. [env: ATTNBOOTH_TRAIN_SAMPLE_EVERY]")
    ] = None,
    snapshot_every: Annotated[
        int | None,
        typer.Option(min=0, help="Keep the concept every N steps, for eval. [env: ATTNBOOTH_TRAIN_SNAPSHOT_EVERY]"),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Only kernels that give the same bits every time; slower. [env: ATTNBOOTH_TRAIN_DETERMINISTIC]",
        ),
    ] = None,
    memory: Annotated[
        options.Memory | None,
        typer.Option(
            help="What the device's memory asks for: gradient checkpointing, micro-batches, 8-bit AdamW, LoRA in stage "
            "3 (docs/memory.md); auto by default. [env: ATTNBOOTH_TRAIN_MEMORY]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as train.unet.steps=300; may be repeated.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew even if a run is there.")] = False,
    report: options.RunReport = True,
    executor: options.Executor = "here",
    resources: options.Resources = None,
    retries: options.Retries = RETRIES,
    category: Annotated[str | None, typer.Option(help="For a bare folder of pictures: as in init.")] = None,
    model: Annotated[str | None, typer.Option(help="For a bare folder of pictures: as in init.")] = None,
    token: Annotated[str | None, typer.Option(help="For a bare folder of pictures: as in init.")] = None,
    resolution: Annotated[
        int | None, typer.Option(min=16, max=4096, help="For a bare folder of pictures: as in init.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Learn the concept of a project, or of a bare folder of pictures, which becomes one.

    Every setting of [train] has an environment variable: train.unet.steps is ATTNBOOTH_TRAIN_UNET_STEPS.
    """
    from attnbooth_cli.engine.initialisation import Declaration
    from attnbooth_cli.engine.preparation import TrainOptions, check_options

    console = Console(json, quiet, verbose)
    chosen = TrainOptions(
        fast=fast,
        smoke=smoke,
        method=method,
        seed=seed,
        device=device,
        precision=precision,
        save_precision=save_precision,
        sample_every=sample_every,
        snapshot_every=snapshot_every,
        deterministic=deterministic,
        memory=memory,
        settings=tuple(settings or ()),
    )
    declaration = Declaration(category, model, token, resolution)
    check_options(chosen)
    crew = crew_of(executor, resources, retries)
    roots = chosen_projects(console, projects, listed)
    if dry_run:
        return each_project(console, roots, lambda root: _dry_run(console, root, chosen, until, declaration))

    def begin(root: Path, emit: Emit) -> None:
        from attnbooth_cli.engine.initialisation import init_bare_folder

        made = init_bare_folder(root, declaration, emit, bars=console.interactive)
        if made:
            for line in summary(made, console.width):
                console.message(line)

    def one(root: Path, emit: Emit, should_stop: ShouldStop, pool: Callable[[], ComponentPool]) -> None:
        begin(root, emit)
        with heavy_imports():  # which a mistake need not wait for
            from attnbooth_cli.engine.training import train as engine_train

        engine_train(
            root,
            options=chosen,
            until=until,
            restart=restart,
            emit=emit,
            should_stop=should_stop,
            pool=pool(),
            report=report,
        )

    if crew:
        return spread(console, roots, Work("train", chosen, until, restart, report), crew, begin)
    return _run(console, roots, one)


def resume(
    projects: options.SomeProjects = None,
    listed: options.ProjectList = None,
    report: options.RunReport = True,
    executor: options.Executor = "here",
    resources: options.Resources = None,
    retries: options.Retries = RETRIES,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Continue a run that was stopped, with the settings it was begun with."""

    console = Console(json, quiet, verbose)
    crew = crew_of(executor, resources, retries)
    roots = chosen_projects(console, projects, listed)
    if crew:
        return spread(console, roots, Work("resume", report=report), crew, lambda root, _: open_project(root))

    def one(root: Path, emit: Emit, should_stop: ShouldStop, pool: Callable[[], ComponentPool]) -> None:
        open_project(root)
        with heavy_imports():  # which a mistake need not wait for
            from attnbooth_cli.engine.training import resume as engine_resume

        engine_resume(root, emit=emit, should_stop=should_stop, pool=pool(), report=report)

    return _run(console, roots, one)


def _run(console: Console, projects: list[Path], one: Callable[..., object]) -> int:
    """One after the other in this process, which loads the base model once."""
    from attnbooth_cli.cli.progress import shown
    from attnbooth_cli.cli.signals import stop_at_safe_points

    began = time.monotonic()
    starts: dict[Path, float] = {}
    runs: dict[Path, str] = {}
    outcomes: dict[Path, Outcome] = {}

    @cache
    def pool() -> ComponentPool:
        from attnbooth_cli.engine.families import ComponentPool

        return ComponentPool(keep=len(projects) > 1)

    def train_one(root: Path) -> None:
        starts[root] = time.monotonic()
        finished: list[Finished] = []
        refused: list[OSError] = []  # by stdout, whose reader has gone or whose disk is full

        def asked() -> int:
            return should_stop() or (BROKEN_PIPE - 128 if refused else 0)

        try:
            with shown(console) as show:
                said = reporter(console, root, show, runs, finished)
                one(root, until_refused(said, refused), asked, pool)
        except StoppedError as stop:
            if stop.exit_code != BROKEN_PIPE:
                raise
            console.message(f"the output cannot be written; {stop.message}, and `{stop.hint}` goes on")
        if refused:
            raise refused[0]
        outcomes[root] = succeeded(finished[-1] if finished else None, time.monotonic() - starts[root])
        for event in finished:  # after the bars are gone
            show_pictures(console, event.samples[-1:])
            console.results(_summary(root, event, console.width))

    def report(root: Path, failure: BoothError) -> None:
        console.failure(failure, root, runs.get(root))
        outcomes[root] = failed(failure, runs.get(root), time.monotonic() - starts[root])

    with stop_at_safe_points(console.message) as should_stop:
        code = each_project(console, projects, train_one, report)
    if len(projects) > 1 and os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        close(console, projects, outcomes, code, time.monotonic() - began)
    if code == 0:  # else the others may have gone already
        from attnbooth_cli.engine.devices import disband

        disband()
    return code


def _summary(root: Path, event: Finished, width: int) -> Iterable[str]:
    from attnbooth_cli.reports.units import duration

    if event.nothing_to_do:
        yield from wrapped(f"nothing to do: trained already ({', '.join(event.stages)})", width)
        if event.remaining:
            yield from command_lines(f"the rest ({', '.join(event.remaining)}):", command("resume", root), width)
        again = "again from the start, with the settings you want:"
        yield from command_lines(again, command("train", root, "--restart"), width)
        return
    yield f"done in {duration(event.seconds)}: {', '.join(event.stages)}"
    if event.concept:
        yield from path_lines("concept:", event.concept, width)
    for path in event.samples:
        yield from path_lines("sample: ", path, width)
    if event.report:
        yield from path_lines("report: ", event.report, width)
    if not event.concept:
        return
    if event.smoke:
        yield from command_lines("next:   ", command("train", root), width)
        return
    generate = f'{command("generate", root)} "a photo of a {{}} on a beach" -n 4 --grid'
    yield from command_lines("next:   ", generate, width)


def _dry_run(
    console: Console, root: Path, chosen: TrainOptions, until: StageName | None, declaration: Declaration
) -> None:
    from attnbooth_cli.engine.forecast import outlook
    from attnbooth_cli.engine.initialisation import check_declaration
    from attnbooth_cli.engine.plan import settings_of
    from attnbooth_cli.engine.preparation import prepare

    check_declaration(root, declaration)
    prepared = prepare(root, chosen)
    for warning in prepared.warnings:
        console.warning(warning)
    table = settings_of(prepared.plan)
    asked = dataclasses.replace(prepared.plan, stages=prepared.plan.stages_until(until))
    expected = outlook(asked, prepared.base)
    console.document(
        "plan",
        root,
        None,
        digest=prepared.plan.digest,
        settings={key: {"value": value, "origin": origin} for key, (value, origin) in table.items()},
        warnings=prepared.warnings,
        outlook=dataclasses.asdict(expected),
    )
    console.results(settings_lines(table, console.width))
    console.results(outlook_lines(expected))
