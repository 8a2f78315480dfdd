"""What happens between the steps of a run: checkpoints, samples, snapshots, and stopping when asked to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from attnbooth_cli.engine import adapters, checkpoint, concept, offload, snapshots
from attnbooth_cli.engine.attention import fused
from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.checkpoint import Checkpoint
from attnbooth_cli.engine.checkpoint_writer import CheckpointWriter, Parts
from attnbooth_cli.engine.conditioning import Subject
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.loop import Progress, diverged, optimizer_tensors, trainable_parameters
from attnbooth_cli.engine.methods import Stage, StageName
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.engine.runs import RunFolder, base_files
from attnbooth_cli.engine.sampling import Request, SamplingSettings, is_black, sample
from attnbooth_cli.engine.tokens import write_rows
from attnbooth_cli.engine.weights import all_finite
from attnbooth_cli.errors import StoppedError
from attnbooth_cli.events import Checkpointed, Emit, Sampled, Snapshotted, Stepped, Warned
from attnbooth_cli.project.project import Project
from attnbooth_cli.project.samples import save_picture
from attnbooth_cli.project.shell import command

SAMPLE_PROMPT = "a photo of a {} on the beach"
"""The picture made at the end of each stage: the concept somewhere it was not photographed (our choice)."""

_SMOKE_SAMPLING_STEPS = 4
ShouldStop = Callable[[], int]
"""Returns the number of the signal that asked to stop, 0 for none."""


@dataclass
class Session:
    """The live state of one run.

    Attributes:
        micro_batch_size: The plan's, or what memory has left of it.
        sources: All that the VAE encodes pictures for.
    """

    folder: RunFolder
    plan: Plan
    base: BaseModel
    subject: Subject
    accelerator: Any
    emit: Emit
    should_stop: ShouldStop
    samples: list[str]
    micro_batch_size: int
    writer: CheckpointWriter
    sources: tuple[LatentSource, ...] = ()

    @property
    def project(self) -> Project:
        return self.folder.project

    def after_step(self, progress: Progress) -> None:
        """Reports; saves when it is time or a signal asks for it; makes the pictures asked for on the way."""
        stage, step = progress.stage, progress.step
        last = step == stage.steps
        self.emit(
            Stepped(
                stage=stage.name,
                step=step,
                steps=stage.steps,
                diffusion_loss=progress.losses.diffusion,
                attention_loss=progress.losses.attention,
                seconds=progress.seconds,
                prior_loss=progress.losses.prior,
                attention_mean_loss=progress.losses.attention_mean,
                attention_variance_loss=progress.losses.attention_variance,
            )
        )
        self._tell(self.writer.written())
        if self.sources and all(source.complete for source in self.sources):
            offload.put_aside(self.subject.components.vae, self.accelerator.device)
        stop = self._agreed_stop()
        due = self.plan.checkpoint_every and step % self.plan.checkpoint_every == 0
        if not last and (due or stop):
            self._save(progress)
        if stop and not last:
            self.settle()
            self.stop(stop)
        if not last and self.plan.sample_every and step % self.plan.sample_every == 0:
            self.sample(stage, step)
        if not last and self.plan.snapshot_every and step % self.plan.snapshot_every == 0:
            self._snapshot(progress)

    def lowered(self, micro_batch_size: int) -> None:
        """Says that a step did not fit the memory; later stages begin with what did."""
        self.micro_batch_size = micro_batch_size
        several = "one sample" if micro_batch_size == 1 else f"{micro_batch_size} samples"
        self.emit(
            Warned(
                f"out of memory: {several} at a time from here on, which adds up to the same "
                f"(--set train.micro_batch_size={micro_batch_size} says so from the start)"
            )
        )

    def stop(self, signal_number: int) -> NoReturn:
        """Ends the run after a signal; the state is saved already."""
        raise stopped(self.project, self.plan, signal_number)

    def stop_if_asked(self) -> None:
        """`stop` if a signal arrived."""
        if signal_number := self._agreed_stop():
            self.stop(signal_number)

    def _agreed_stop(self) -> int:
        """The signal any process received: all of them must stop at the same step."""
        mine = torch.tensor([self.should_stop()], device=self.accelerator.device)
        if self.accelerator.num_processes == 1:
            return int(mine)
        return int(self.accelerator.gather(mine).max())  # older versions of accelerate reduce to sums only

    def _save(self, progress: Progress) -> None:
        stage, step = progress.stage, progress.step
        _require_finite(progress)
        if self.accelerator.is_main_process:
            parts: Parts = {"weights": progress.parameters, "optimizer": optimizer_tensors(progress)}
            scaler = progress.scaler.state_dict() if progress.scaler is not None else None
            self._tell(self.writer.save(stage.name, step, parts, scaler))
        self.accelerator.wait_for_everyone()

    def settle(self) -> None:
        """Waits until the checkpoint that is being written is durable.

        Raises:
            ResourceError: it cannot be written.
        """
        self._tell(self.writer.written(wait=True))

    def _tell(self, written: Iterable[Checkpoint]) -> None:
        for saved in written:
            self.emit(Checkpointed(saved.stage, saved.step, str(saved.folder)))

    def sample(self, stage: Stage, step: int) -> None:
        """Makes one picture from the current weights (main process only)."""
        if self.accelerator.is_main_process:
            components, placeholder_ = self.subject.components, self.subject.placeholder
            (encoder,) = components.text_encoders
            write_rows(encoder.tokenizer, encoder.model, placeholder_, self.subject.rows)
            settings = sampling_settings(self.base, self.plan)
            request = Request(placeholder_.prompt(SAMPLE_PROMPT), self.plan.seed)
            resting = offload.at_hand(self.accelerator.device, components.vae, encoder.model)
            with resting, fused(components.unet), self.accelerator.autocast():
                (picture,) = sample(components, [request], settings)
            if is_black(picture):
                self.emit(Warned(f"the sample after step {step} of stage {stage.name} is all black"))
            name = f"{self.folder.name}-{stage.name}" + ("" if step == stage.steps else f"-{step:06d}")
            metadata = {
                "prompt": request.prompt,
                "seed": request.seed,
                **dataclasses.asdict(settings),
                "run": self.folder.name,
                "stage": stage.name,
                "step": step,
                "smoke": self.plan.smoke,
            }
            path = save_picture(self.project.samples, name, picture, metadata)
            self.samples.append(str(path))
            self.emit(Sampled(stage.name, step, str(path), request.prompt, request.seed))
        self.accelerator.wait_for_everyone()

    def _snapshot(self, progress: Progress) -> None:
        """Keeps the concept as it is now (main process only)."""
        stage, step = progress.stage, progress.step
        _require_finite(progress)
        if self.accelerator.is_main_process:
            stages = tuple(planned.name for planned in self.plan.stages_until(stage.name))
            place = self.folder.snapshots / snapshots.snapshot_name(stage.name, step)
            concept.publish(place, self.result(stages, step))
            self.emit(Snapshotted(stage.name, step, str(place)))
        self.accelerator.wait_for_everyone()

    def result(self, stages: tuple[StageName, ...], step: int) -> concept.Result:
        """What has been learned after `step` steps of the last of `stages`."""
        base = {
            **dataclasses.asdict(self.plan.base), "family": self.base.family, "resolution": self.base.resolution,
        }  # fmt: skip
        subject = self.subject
        return concept.Result(
            self.folder.name,
            self.plan,
            base,
            base_files(self.folder),
            stages,
            step,
            subject.components,
            subject.placeholder,
            subject.rows,
            self._attention(stages),
            self._adapter(stages),
        )

    def _stage(self, name: StageName) -> Stage:
        return next(stage for stage in self.plan.stages if stage.name == name)

    def _adapter(self, stages: tuple[StageName, ...]) -> dict[str, Tensor]:
        """The adapter trained in place of the U-Net: as it is on the way, or as its stage left it.

        Nothing where stage `attention` has changed the weights below it: an adapter alone would not hold that.
        """
        below = "attention" in stages and not self._stage("attention").adapter
        if stages[-1] != "unet" or not self._stage("unet").adapts_unet or below:
            return {}
        live = adapters.parameters(self.subject.components.unet)
        return dict(live) or checkpoint.read(self.folder.stages / "unet").tensors("weights")

    def _attention(self, stages: tuple[StageName, ...]) -> dict[str, Tensor]:
        """What stage `attention` changed, as it left it or as it is on the way."""
        if self._stage("attention").adapter:
            return {}
        if stages[-1] == "attention":
            return {
                name: tensor.detach()
                for name, tensor in trainable_parameters(self.subject, self._stage("attention")).items()
            }
        if "attention" in stages:
            return checkpoint.read(self.folder.stages / "attention").tensors("weights")
        return {}


def stopped(project: Project, plan: Plan, signal_number: int) -> StoppedError:
    """What is said when a signal has ended a run; a smoke test always begins anew."""
    again = ("train", project.root, "--smoke") if plan.smoke else ("resume", project.root)
    return StoppedError("everything is saved", command(*again), signal_number)


def _require_finite(progress: Progress) -> None:
    """Raises:
    DivergedError: what would be kept of a step is no longer finite.
    """
    if not all_finite(progress.parameters):
        raise diverged(progress.stage, progress.step, "a trained weight")


def sampling_settings(base: BaseModel, plan: Plan) -> SamplingSettings:
    """How training samples are made: the base model's own defaults, four steps for a smoke test."""
    steps = _SMOKE_SAMPLING_STEPS if plan.smoke else base.entry.sampling_steps
    return SamplingSettings(steps, base.entry.guidance, plan.resolution, plan.resolution)
