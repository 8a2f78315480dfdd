"""A run of a plan: its stages in order, each from where it stopped, then `concept/` and the page about it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attnbooth_cli.engine import adapters, checkpoint, concept, offload
from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.checkpoint import Checkpoint
from attnbooth_cli.engine.checkpoint_writer import CheckpointWriter, writes_behind
from attnbooth_cli.engine.conditioning import Subject
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.devices import (
    is_main_process,
    make_accelerator,
    resolve_device,
    resolve_precision,
    return_large_blocks,
)
from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.forecast import is_tight, micro_batches, note_rate
from attnbooth_cli.engine.loop import Progress, run_stage, trainable_parameters
from attnbooth_cli.engine.machine import free_host_memory, own_memory
from attnbooth_cli.engine.methods import METHODS, Stage, StageName
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.engine.preparation import check_pictures_of_plan
from attnbooth_cli.engine.requirements import require_disk, require_memory
from attnbooth_cli.engine.runs import RunFolder, logged, record
from attnbooth_cli.engine.session import Session, ShouldStop
from attnbooth_cli.engine.subjects import prior_of, source_of, subject_of
from attnbooth_cli.engine.tokens import write_rows
from attnbooth_cli.engine.training_report import write_training_report
from attnbooth_cli.engine.trial import estimate_seconds
from attnbooth_cli.errors import BoothError, DamagedError, DivergedError
from attnbooth_cli.events import Checkpointed, Emit, Finished, StageFinished, StageStarted, Started, Warned, ignore
from attnbooth_cli.project.documents import read_json_object
from attnbooth_cli.project.manifest import Manifest
from attnbooth_cli.project.project import Project
from attnbooth_cli.project.state import Run


def execute(
    project: Project,
    manifest: Manifest,
    run: Run,
    plan: Plan,
    base: BaseModel,
    until: StageName | None,
    emit: Emit,
    should_stop: ShouldStop,
    pool: ComponentPool,
    report: bool,
) -> None:
    """Runs every stage that is still to do, then publishes."""
    started = time.monotonic()
    folder = RunFolder(project, run.name)
    picture_paths = check_pictures_of_plan(project, manifest, plan)
    emit = logged(folder, emit) if is_main_process() else ignore
    device = resolve_device(plan.device)
    asked = replace(plan, stages=plan.stages_until(until))
    micro_batch_size = plan.micro_batch_size
    if device.type == "cpu":  # where running out of memory ends the process, and no error can be answered
        room = free_host_memory() + own_memory()
        if is_tight(asked, base, room):
            return_large_blocks()
        if plan.memory == "auto" and not micro_batch_size:
            micro_batch_size = micro_batches(asked, base, room)
    if micro_batch_size != plan.micro_batch_size:
        emit(Warned(f"{micro_batch_size} pictures at a time: whole batches would not fit the memory that is free"))
    accelerator = make_accelerator(device, resolve_precision(plan.precision, device))
    components = pool.take(base)
    require_disk(folder.root, asked, components.unet)
    components.to(accelerator.device)
    require_memory(asked, components.unet, accelerator.device)
    source = source_of(picture_paths, plan, components)
    subject = subject_of(components, source, plan, emit)
    if any(stage.prior_weight for stage in asked.stages):
        prior = prior_of(folder, plan, base, components, accelerator, emit, should_stop, micro_batch_size)
        subject = replace(subject, prior=prior)
    sources = (source, subject.prior) if subject.prior else (source,)
    writer = CheckpointWriter(folder.checkpoints, writes_behind(accelerator.device))
    session = Session(
        folder, plan, base, subject, accelerator, emit, should_stop, [], micro_batch_size, writer, sources
    )
    finished, resumed = _restore(folder, asked.stages, plan, subject, emit)
    remaining = tuple(stage for stage in asked.stages if stage.name not in finished)
    estimated = None
    if not plan.smoke:
        already_done = resumed.step if resumed else 0
        session.stop_if_asked()
        trial = replace(plan, micro_batch_size=micro_batch_size)
        estimated = estimate_seconds(remaining, already_done, subject, source, trial, accelerator)
    session.stop_if_asked()
    emit(
        Started(
            run=run.name,
            method=plan.method,
            stages=tuple((stage.name, stage.steps) for stage in remaining),
            pictures=len(plan.pictures),
            token=plan.concept.token,
            category=plan.concept.category,
            base_model=plan.base.model,
            resolution=plan.resolution,
            device=str(accelerator.device),
            precision=resolve_precision(plan.precision, device),
            estimated_seconds=estimated,
            resumed_from=f"{resumed.stage} {resumed.step}" if resumed else None,
            smoke=plan.smoke,
        )
    )
    with contextlib.closing(writer):
        for stage in remaining:
            try:
                begun = resumed if resumed and resumed.stage == stage.name else None
                _run_stage(session, stage, source, begun, sampled=not plan.smoke or stage is remaining[-1])
            except DivergedError:
                if accelerator.is_main_process:
                    record(project, replace(run, stages=finished, status="diverged"))
                raise
            finished = (*finished, stage.name)
            if accelerator.is_main_process:
                record(project, replace(run, stages=finished, status="unfinished"))
            if stage is not remaining[-1]:
                session.stop_if_asked()
    page: Path | None = None
    published = True
    if accelerator.is_main_process:
        published = _finish(session, run, finished)
        if report:
            page = _report(session, finished, picture_paths, time.monotonic() - started)
    accelerator.wait_for_everyone()
    emit(
        Finished(
            run=run.name,
            concept=str(project.concept) if published else None,
            stages=finished,
            seconds=time.monotonic() - started,
            samples=tuple(session.samples),
            smoke=plan.smoke,
            report=str(page) if page else None,
        )
    )


def _run_stage(
    session: Session, stage: Stage, source: LatentSource, resumed: Checkpoint | None, *, sampled: bool
) -> None:
    plan, started = session.plan, time.monotonic()
    session.emit(StageStarted(stage.name, resumed.step if resumed else 0, stage.steps))
    seconds: list[float] = []

    def after_step(progress: Progress) -> None:
        seconds.append(progress.seconds)
        session.after_step(progress)

    (encoder,) = session.subject.components.text_encoders
    offload.bring_back(encoder.model, session.accelerator.device)
    run_stage(
        stage,
        session.subject,
        source,
        session.accelerator,
        METHODS[plan.method].optimizer,
        optimizer_name=plan.optimizer,
        micro_batch_size=session.micro_batch_size,
        gradient_checkpointing=plan.gradient_checkpointing,
        resume=resumed,
        after_step=after_step,
        lowered=session.lowered,
    )
    session.settle()
    write_rows(encoder.tokenizer, encoder.model, session.subject.placeholder, session.subject.rows)
    if session.accelerator.is_main_process:
        weights = trainable_parameters(session.subject, stage)
        place = session.folder.stages / stage.name
        checkpoint.save(place, stage.name, stage.steps, {"weights": weights})
        session.emit(Checkpointed(stage.name, stage.steps, str(place)))
        _note_rate(session, stage, seconds)
    session.accelerator.wait_for_everyone()
    if stage.adapts_unet:
        adapters.merge(session.subject.components.unet)
    if sampled:
        session.sample(stage, stage.steps)
    session.emit(StageFinished(stage.name, stage.steps, stage.steps, time.monotonic() - started))


def _note_rate(session: Session, stage: Stage, seconds: Sequence[float]) -> None:
    plan, components, device = session.plan, session.subject.components, session.accelerator.device
    place = f"{device.type} {resolve_precision(plan.precision, device)}"
    side = plan.resolution // components.pixels_per_latent
    note_rate(plan, stage, components.unet.config, side, place, seconds)


def _restore(
    folder: RunFolder, stages: tuple[Stage, ...], plan: Plan, subject: Subject, emit: Emit
) -> tuple[tuple[StageName, ...], Checkpoint | None]:
    """Loads the results of finished stages, in order, and finds the checkpoint to continue from."""
    finished: tuple[StageName, ...] = ()
    for stage in stages:
        try:
            result = checkpoint.read(folder.stages / stage.name)
        except DamagedError as error:
            if (folder.stages / stage.name).exists():
                emit(Warned(f"{error.message}; stage {stage.name} is done again"))
            break
        _load(subject, stage, plan, result)
        finished = (*finished, stage.name)
    found, skipped = checkpoint.newest(folder.checkpoints)
    for sentence in skipped:
        emit(Warned(sentence))
    upcoming = [stage for stage in stages if stage.name not in finished]
    if found and upcoming and found.stage == upcoming[0].name:
        if found.step > upcoming[0].steps:
            raise checkpoint.misfit(found.folder / checkpoint.MARKER, f"step {found.step} of {upcoming[0].steps}")
        return finished, found
    return finished, None


def _load(subject: Subject, stage: Stage, plan: Plan, result: Checkpoint) -> None:
    if stage.adapts_unet:
        adapters.attach(subject.components.unet, stage, plan.seed)
    checkpoint.load_into(trainable_parameters(subject, stage), result)
    if stage.adapts_unet:
        adapters.merge(subject.components.unet)
    (encoder,) = subject.components.text_encoders
    write_rows(encoder.tokenizer, encoder.model, subject.placeholder, subject.rows)


def _finish(session: Session, run: Run, finished: tuple[StageName, ...]) -> bool:
    """Publishes the concept, makes it current, and drops what only an unfinished run needs.

    Returns:
        False where a smoke test found a real concept, which stays.
    """
    project, plan, folder = session.project, session.plan, session.folder
    current = read_json_object(project.concept / concept.CARD)
    published = not (plan.smoke and current and not current.get("smoke"))
    if published:
        last = next(stage for stage in plan.stages if stage.name == finished[-1])
        concept.publish(project.concept, session.result(finished, last.steps))
    else:
        session.emit(Warned("concept/ holds a real concept, so the smoke test's result was not put there"))
    record(project, replace(run, stages=finished, status="done"), concept_run=folder.name if published else None)
    checkpoint.drop(folder.checkpoints, finished)
    if "unet" in finished:
        shutil.rmtree(folder.stages / "unet", ignore_errors=True)
    return published


def _report(
    session: Session, finished: tuple[StageName, ...], picture_paths: list[Path], seconds: float
) -> Path | None:
    """Writes the page about the run. The concept is safe by now, so a page that cannot be made is no failure."""
    try:
        return write_training_report(
            session.folder,
            session.plan,
            session.subject.placeholder,
            finished,
            picture_paths,
            seconds,
            is_current=(read_json_object(session.project.concept / concept.CARD) or {}).get("run")
            == session.folder.name,
        )
    except (BoothError, OSError, ValueError) as error:
        session.emit(Warned(f"the report of the run could not be written ({error})"))
        return None
