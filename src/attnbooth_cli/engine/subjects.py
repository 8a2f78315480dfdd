"""What a run learns, and from which pictures: made from its plan and a loaded base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from attnbooth_cli.engine.augmentation import AUGMENTATIONS
from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.conditioning import CLASS_PROMPT, Subject
from attnbooth_cli.engine.data import LatentSource, beside, load_pictures
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.gallery import Shelf, fill
from attnbooth_cli.engine.plan import Plan
from attnbooth_cli.engine.prompting import KINDS
from attnbooth_cli.engine.runs import RunFolder
from attnbooth_cli.engine.sampling import BATCH_SIZE, Request
from attnbooth_cli.engine.session import ShouldStop, sampling_settings, stopped
from attnbooth_cli.engine.tokens import add_placeholder, knows, placeholder
from attnbooth_cli.events import Emit, Event, Warned


def subject_of(components: Components, source: LatentSource, plan: Plan, emit: Emit) -> Subject:
    """[V] in the text encoder, the prompts that the base model knows, and what tells the U-Net more of [V].

    Args:
        emit: Warned of prompts that are left out.
    """
    (encoder,) = components.text_encoders
    placeholder_ = placeholder(plan.concept.token, plan.concept.vectors, plan.concept.category, plan.with_category)
    known = [prompt for prompt in plan.prompts if knows(encoder.tokenizer, prompt.replace("{}", ""))]
    if len(plan.prompts) > 1 and len(known) < len(plan.prompts):
        unknown = len(plan.prompts) - len(known)
        emit(Warned(f"{unknown} of {len(plan.prompts)} training prompts have words the base model does not know"))
    prompts = tuple(placeholder_.prompt(prompt) for prompt in (known or plan.prompts))
    rows = add_placeholder(encoder.tokenizer, encoder.model, placeholder_, plan.initial)
    parameter = nn.Parameter(rows.to(components.device), requires_grad=False)
    for stage in plan.stages:
        if stage.enabled and stage.adapter in KINDS:
            components.prompting = KINDS[stage.adapter].begin(components, placeholder_, source)
    return Subject(components, placeholder_, parameter, prompts)


def prior_of(
    folder: RunFolder,
    plan: Plan,
    base: BaseModel,
    components: Components,
    accelerator: Any,
    emit: Emit,
    should_stop: ShouldStop,
    at_once: int,
) -> LatentSource:
    """The class's pictures, made by the base model as it is (DreamBooth, section 3.2), which the main process does.

    Args:
        at_once: How many are made together, 0 for as many as otherwise.

    Raises:
        StoppedError: a signal arrived between two of them; those that are made are kept.
    """

    def made(event: Event) -> None:
        emit(event)
        # Of several processes the others wait for all pictures, so that this one must not leave them.
        if accelerator.num_processes == 1 and (signal_number := should_stop()):
            raise stopped(folder.project, plan, signal_number)

    shelf = Shelf(folder.root / "class", {"base": plan.base.sha256}, sampling_settings(base, plan))
    prompt = CLASS_PROMPT.format(plan.concept.category)
    requests = [Request(prompt, number) for number in range(plan.prior_pictures)]
    if accelerator.is_main_process:
        with accelerator.autocast():
            fill(shelf, requests, lambda: components, made, at_once or BATCH_SIZE)
    accelerator.wait_for_everyone()
    return source_of([shelf.path(request) for request in requests], plan, components, augmentation="cropped")


def source_of(paths: list[Path], plan: Plan, components: Components, augmentation: str | None = None) -> LatentSource:
    """Latents of pictures, augmented as the plan has it; a pool has every picture at least once.

    Args:
        augmentation: In place of the plan's. Class pictures are seen as they are ("cropped" leaves a square one alone):
            turned ones with black corners would teach the class another thing than what it was.
    """
    return LatentSource(
        pictures=load_pictures(paths, plan.resolution),
        vae=components.vae,
        seed=plan.seed,
        resolution=plan.resolution,
        train_timesteps=components.noise_scheduler.config.num_train_timesteps,
        augment=AUGMENTATIONS[augmentation or plan.augmentation],
        pool=max(plan.augmentation_pool, len(paths)) if plan.augmentation_pool else 0,
        device=components.device,
        ahead=beside(components.device),
    )
