"""From a project to a concept: plan, stages, artefacts (the whole of the paper's section 4).

A run is a folder `runs/NAME`: the plan it follows, its events, its checkpoints and the result of each finished stage.
`train` begins or continues one, `resume` continues one, and both end by publishing `concept/`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from attnbooth_cli.engine import adapters, optimizers
from attnbooth_cli.engine.changes import continued, edited
from attnbooth_cli.engine.devices import decided_by_main, is_main_process, resolve_device, same_bits
from attnbooth_cli.engine.execution import execute
from attnbooth_cli.engine.families import ComponentPool, load_tokenizer
from attnbooth_cli.engine.methods import STAGE_NAMES, StageName
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.engine.preparation import TrainOptions, base_of_plan, file_hashes, prepare, require_same_files
from attnbooth_cli.engine.runs import (
    RunFolder,
    base_files,
    is_current,
    new_run,
    only_writer,
    read_plan,
    record,
    run_to_continue,
)
from attnbooth_cli.engine.session import ShouldStop
from attnbooth_cli.engine.tokens import category_pieces, check_length, placeholder, recorded_positions
from attnbooth_cli.errors import InputError
from attnbooth_cli.events import Emit, Finished, Warned, ignore
from attnbooth_cli.project.project import Project, open_project
from attnbooth_cli.project.shell import command
from attnbooth_cli.project.state import Run, State, read_state


def train(
    root: Path | str,
    *,
    options: TrainOptions | None = None,
    fast: bool = False,
    until: StageName | None = None,
    restart: bool = False,
    emit: Emit = ignore,
    should_stop: ShouldStop = lambda: 0,
    pool: ComponentPool | None = None,
    report: bool = True,
) -> Project:
    """Trains a project's concept to the end of stage `until` (the last by default), or continues its unfinished run.

    Args:
        options: Settings beside the manifest's; `fast=True` is short for `TrainOptions(fast=True)`.
        restart: Begin a new run even if one is finished or unfinished; the former concept stays until the new one is
            complete.
        should_stop: Asked after every step; on a signal the state is saved and `StoppedError` raised.
        pool: Shares a loaded base model between calls.
        report: Write the page about the run when it is finished.

    Raises:
        InputError: manifest, settings, pictures; or an unfinished run was begun with other settings.
        LockedError, DamagedError, ResourceError, BaseModelError, DivergedError, StoppedError: see `errors`.
    """
    options = options or TrainOptions(fast=fast)
    emit = emit if is_main_process() else ignore
    prepared = prepare(Path(root), options)
    project, plan = prepared.project, prepared.plan
    for warning in prepared.warnings:
        emit(Warned(warning))
    _check_words(plan, load_tokenizer(prepared.base), emit)
    _require_libraries(plan, until)
    wanted = {stage.name for stage in plan.stages_until(until)}
    with only_writer(project):

        def decide() -> Run:
            found = None if restart else run_to_continue(project, read_state(project), plan)
            if found:
                require_same_files(prepared.base, base_files(RunFolder(project, found.name)), project.root)
            run = found or new_run(project, plan, file_hashes(prepared.base), fast=options.fast)
            if run.status == "done" and not wanted <= set(run.stages):
                run = replace(run, status="unfinished")  # so that `resume` goes as far as is wanted now, and no further
            run = replace(run, until=until)
            record(project, run)
            return run

        run = decided_by_main(decide, resolve_device(plan.device))
        if _settled(project, run, wanted, emit):
            return project
        as_asked = continued(read_plan(RunFolder(project, run.name)), plan)
        pool, manifest, base = pool or ComponentPool(), prepared.manifest, prepared.base
        with same_bits(as_asked.deterministic):
            execute(project, manifest, run, as_asked, base, until, emit, should_stop, pool, report)
    return project


def resume(
    root: Path | str,
    *,
    emit: Emit = ignore,
    should_stop: ShouldStop = lambda: 0,
    pool: ComponentPool | None = None,
    report: bool = True,
) -> Project:
    """Continues the newest unfinished run with the plan it was begun with, as far as it was asked to go.

    Where no run is unfinished, it goes on with the stages that `until` left out, or makes a lost `concept/` again.

    Raises:
        InputError: nothing was ever begun, a training picture changed, or the manifest says by now what would make
            another concept.
        Others: as `train`.
    """
    project, manifest = open_project(Path(root))
    emit = emit if is_main_process() else ignore
    with only_writer(project):
        state = read_state(project)
        if not state.runs:
            raise InputError(f"{project.root} has no run to resume", command("train", project.root))
        if not state.unfinished and state.runs[-1].status == "diverged":
            raise InputError(
                f"the last run of {project.root}, {state.runs[-1].name}, diverged and cannot be continued",
                f"{command('train', project.root)} with a lower learning rate (--set train.STAGE.learning_rate=...)",
            )
        run = state.unfinished[-1] if state.unfinished else _last_real_run(state)
        plan = read_plan(RunFolder(project, run.name))
        until = next((name for name in STAGE_NAMES if name == run.until and run.status != "done"), None)
        wanted = {stage.name for stage in plan.stages_until(until)}
        if _settled(project, run, wanted, emit):
            return project
        _require_libraries(plan, until)
        if changed := edited(plan, manifest):
            raise InputError(
                f"{project.manifest} says otherwise than when {run.name} was begun ({'; '.join(changed[:4])}), "
                "and a run keeps its settings",
                f"put it back, or begin again with: {command('train', project.root, '--restart')}",
            )
        base, pool = base_of_plan(plan, manifest, project.root), pool or ComponentPool()
        require_same_files(base, base_files(RunFolder(project, run.name)), project.root)
        with same_bits(plan.deterministic):
            execute(project, manifest, run, plan, base, until, emit, should_stop, pool, report)
    return project


def _check_words(plan: Plan, tokenizer: Any, emit: Emit) -> None:
    """Checks by the tokenizer alone what would fail, or train on nothing, once everything is loaded.

    Args:
        emit: Warned of a prompt's words that the model does not see.

    Raises:
        InputError: it does not know the category, or a training prompt is so long that it loses [V], or the category
            that the regulariser compares it with.
    """
    concept = placeholder(plan.concept.token, plan.concept.vectors, plan.concept.category, plan.with_category)
    category_pieces(tokenizer, plan.concept.category)
    tokenizer.add_tokens(list(concept.tokens))
    length = int(tokenizer.model_max_length)
    for prompt in plan.prompts:
        if any(stage.enabled and stage.regularised for stage in plan.stages):
            recorded_positions(tokenizer, concept, concept.prompt(prompt), length)
        if warning := check_length(tokenizer, concept, concept.prompt(prompt), length):
            emit(Warned(warning))


def _require_libraries(plan: Plan, until: StageName | None) -> None:
    """Refuses at once what would fail for want of a library in the last stage.

    Raises:
        InputError: the optimiser or an adapter cannot be made here.
        ResourceError: the device is not there.
    """
    optimizers.require(plan.optimizer, resolve_device(plan.device))
    adapters.require(plan.stages_until(until))


def _last_real_run(state: State) -> Run:
    """The newest run that is no smoke test, or the newest if all are."""
    return next((run for run in reversed(state.runs) if not run.smoke), state.runs[-1])


def _settled(project: Project, run: Run, wanted: set[StageName], emit: Emit) -> bool:
    """Whether a run has done all that is wanted of it; says so, or that its result is lost and made again."""
    if run.status != "done" or not wanted <= set(run.stages):
        return False
    if is_current(project, run):
        emit(_nothing_to_do(project, run))
        return True
    emit(Warned(f"concept/ does not hold the result of {run.name}, or not whole; it is made again"))
    return False


def _nothing_to_do(project: Project, run: Run) -> Finished:
    folder = RunFolder(project, run.name)
    plan = read_plan(folder)
    return Finished(
        run.name,
        str(project.concept),
        run.stages,
        0.0,
        nothing_to_do=True,
        smoke=run.smoke,
        remaining=tuple(stage.name for stage in plan.stages_until(None) if stage.name not in run.stages),
        report=str(folder.report) if folder.report.exists() else None,
    )
