"""`generate`: pictures of a trained concept from prompts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnbooth_cli.engine import concept
from attnbooth_cli.engine.base_models import BaseModel, resolve
from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.devices import resolve_device, resolve_precision
from attnbooth_cli.engine.families import ComponentPool, Components
from attnbooth_cli.engine.generation_report import Gallery
from attnbooth_cli.engine.methods import StageName
from attnbooth_cli.engine.preparation import changed_files, weights_sha256
from attnbooth_cli.engine.sampling import SCHEDULERS, Request, SamplingSettings, is_black, sample_missing
from attnbooth_cli.engine.tokens import check_length, maximum_length
from attnbooth_cli.engine.vocabulary import warn_of_unknown_words
from attnbooth_cli.errors import BaseModelError, InputError
from attnbooth_cli.events import Advanced, Emit, Warned, ignore
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.manifest import Manifest
from attnbooth_cli.project.project import Project, open_project
from attnbooth_cli.project.samples import find_pictures, save_picture, slug
from attnbooth_cli.reports.grids import contact_sheet

MAX_PICTURES = 100_000
"""In one call; what a person means by more is a typing error."""


@dataclass(frozen=True)
class LoadedConcept:
    """A concept ready to sample from, after one of its stages."""

    project: Project
    card: Card
    base: BaseModel
    stage: StageName
    components: Components


@dataclass(frozen=True)
class GeneratedPicture:
    """A picture on disk and how it was made; `prompt` is as the person wrote it."""

    path: Path
    prompt: str
    seed: int


@dataclass(frozen=True)
class Generated:
    """Everything one call made."""

    project: Project
    run: str
    stage: StageName
    settings: SamplingSettings
    pictures: tuple[GeneratedPicture, ...]
    grid: Path | None
    report: Path | None


def generate(
    root: Path | str,
    prompts: Sequence[str],
    *,
    n: int = 1,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    scheduler: str = "dpm++",
    size: str | None = None,
    stage: StageName | None = None,
    out: Path | str | None = None,
    grid: bool = False,
    report: bool = False,
    missing: bool = False,
    device: str = "auto",
    precision: str = "auto",
    emit: Emit = ignore,
) -> Generated:
    """Makes `n` pictures of each prompt and writes them as PNGs that carry prompt, seed and settings.

    Args:
        prompts: `{}` (or the literal token) stands for the concept.
        seed: Picture i of every prompt uses seed `seed + i`.
        steps, guidance, size: The base model's defaults when None; size is `WIDTHxHEIGHT`.
        stage: The concept as it was after this stage; the last by default.
        out: Another folder than the project's samples.
        grid: Also write all of them on one sheet.
        report: Also write a page with all of them and the commands that make each again.
        missing: Make only those that are not in the folder yet, as an interrupted call left them.

    Raises:
        InputError: nothing trained yet, a prompt without the concept, a wrong size, scheduler or stage.
        DamagedError, BaseModelError, ResourceError: see `errors`.
    """
    if not prompts:
        raise InputError("no prompt was given", 'for example "a photo of a {} on a beach", or --prompts FILE')
    if n < 1:
        raise InputError(f"-n must be at least 1, not {n}", None)
    if n * len(prompts) > MAX_PICTURES:
        raise InputError(
            f"{n * len(prompts)} pictures are too many at once", f"at most {MAX_PICTURES}, then another --seed"
        )
    if not 0 <= seed < 2**63 - n:
        raise InputError(f"--seed must be between 0 and 2^63, not {seed}", None)
    if scheduler not in SCHEDULERS:
        raise InputError(f"there is no scheduler {scheduler!r}", f"schedulers: {', '.join(SCHEDULERS)}")
    project, _ = open_project(Path(root))
    durable.remove_temporaries(project.root, durable.ABANDONED)
    card = concept.read_card(project)
    requests = [Request(card.placeholder.prompt(text), seed + i) for text in prompts for i in range(n)]
    loaded = load_concept(project, card, stage, device, precision, emit)
    settings = settings_for(loaded.card, loaded.base, steps, guidance, size, scheduler, negative)
    warn_of_long_prompts(loaded, [request.prompt for request in requests], emit)
    warn_of_unknown_words(loaded.components.text_encoders[0].tokenizer, card.placeholder.token, prompts, emit)
    folder = Path(out) if out is not None else project.samples
    spoken = [text for text in prompts for _ in range(n)]
    stems = [
        f"{slug(text.replace('{}', card.placeholder.category))}-{request.seed}"
        for text, request in zip(spoken, requests, strict=True)
    ]
    told = [{**_metadata(loaded, settings), "prompt": its.prompt, "seed": its.seed} for its in requests]
    paths = find_pictures(folder, stems, told) if missing else {}
    emit(Advanced(len(paths), len(requests)))
    wanted = set(range(len(requests))) - set(paths)
    for place, picture in sample_missing(loaded.components, requests, settings, wanted):
        if is_black(picture):
            emit(Warned(f"the picture of seed {requests[place].seed} is all black; --device cpu computes in float32"))
        paths[place] = save_picture(folder, stems[place], picture, told[place])
        emit(Advanced(len(paths), len(requests)))
    made = [GeneratedPicture(paths[i], spoken[i], requests[i].seed) for i in range(len(requests))]
    sheet = None
    if grid:
        images = [pictures.load(picture.path) for picture in made]
        sheet = _save_grid(folder, images, n, prompts, card.placeholder.category, _metadata(loaded, settings))
    page = None
    if report:
        gallery = Gallery(len(made))
        for its in made:
            gallery.add(pictures.load(its.path), its.path, its.prompt, its.seed)
        asked = None if device == "auto" else device
        page = gallery.save(folder, loaded.card, project.root, loaded.stage, settings, asked)
    return Generated(project, card.run, loaded.stage, settings, tuple(made), sheet, page)


def load_concept(
    project: Project,
    card: Card,
    stage: StageName | None,
    device: str,
    precision: str,
    emit: Emit,
    pool: ComponentPool | None = None,
) -> LoadedConcept:
    """Loads the base model a concept was trained on, and the concept into it.

    Args:
        pool: Shares a loaded base model between calls.

    Raises:
        InputError: no such stage.
        DamagedError, BaseModelError, ResourceError: see `errors`.
    """
    chosen = card.stage(stage)
    base = base_of(card, open_project(project.root)[1])
    components = load_base(base, device, precision, pool)
    concept.apply(project, card, chosen, components)
    changed = changed_files(base, card.document.get("base_files"))
    beside_unet = [name for name in changed if not name.startswith("unet/")]
    if chosen != "unet" and weights_sha256(base) != card.document["base"]["sha256"]:
        emit(Warned(f"the base model {base.ref} has other weights than the one this concept was trained on"))
    elif beside_unet:
        emit(Warned(f"the base model {base.ref} is not the one this concept was trained on: {beside_unet[0]} differs"))
    if card.smoke:
        emit(Warned("this concept comes from a smoke test: it has hardly learned anything"))
    return LoadedConcept(project, card, base, chosen, components)


def base_of(card: Card, manifest: Manifest) -> BaseModel:
    """The base model a concept was trained on, or where that is gone the same weights from where the manifest says.

    Raises:
        BaseModelError: it is in neither place.
    """
    recorded = card.document["base"]
    try:
        return resolve(recorded["model"], revision=recorded["revision"])
    except BaseModelError:
        if manifest.base.model == recorded["model"]:
            raise
        moved = resolve(manifest.base.model, revision=manifest.base.revision)
        if weights_sha256(moved) != recorded["sha256"]:
            raise
        return moved


def load_base(base: BaseModel, device: str, precision: str, pool: ComponentPool | None = None) -> Components:
    """Loads a base model for sampling, as it is.

    Raises:
        DamagedError, InputError, ResourceError: see `errors`.
    """
    place = resolve_device(device)
    dtype = _DTYPES[resolve_precision(precision, place)]
    components = (pool or ComponentPool()).take(base)
    for model in (components.unet, components.vae, *(encoder.model for encoder in components.text_encoders)):
        model.to(dtype)
    return components.to(place)


def settings_for(
    card: Card,
    base: BaseModel,
    steps: int | None = None,
    guidance: float | None = None,
    size: str | None = None,
    scheduler: str = "dpm++",
    negative: str = "",
) -> SamplingSettings:
    """Sampling settings with the base model's defaults filled in.

    Raises:
        InputError: a size or a number of steps that cannot be.
    """
    resolution = int(card.document["plan"]["resolution"])
    width, height = parse_size(size) if size else (resolution, resolution)
    steps = steps if steps is not None else base.entry.sampling_steps
    if not 1 <= steps <= 1000:
        raise InputError(f"--steps must be between 1 and 1000, not {steps}", None)
    guidance = guidance if guidance is not None else base.entry.guidance
    if not 0 <= guidance <= 100:
        raise InputError(f"--guidance must be between 0 and 100, not {guidance:g}", None)
    return SamplingSettings(steps, guidance, width, height, scheduler, negative)


def parse_size(text: str) -> tuple[int, int]:
    """`512x768` as (width, height).

    Raises:
        InputError: not that form, not multiples of 8, or out of bounds.
    """
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if match is None:
        raise InputError(f"--size must look like 512x512 (width x height), not {text!r}", None)
    width, height = int(match[1]), int(match[2])
    if width % 8 or height % 8 or not (32 <= width <= 4096 and 32 <= height <= 4096):
        raise InputError(f"--size {text}: both sides must be multiples of 8 between 32 and 4096", None)
    return width, height


def warn_of_long_prompts(loaded: LoadedConcept, texts: Sequence[str], emit: Emit) -> None:
    """Warns of prompts whose end the model does not see.

    Raises:
        InputError: the concept itself would be cut off.
    """
    (encoder,) = loaded.components.text_encoders
    length = maximum_length(encoder.tokenizer, encoder.model)
    for text in dict.fromkeys(texts):
        warning = check_length(encoder.tokenizer, loaded.card.placeholder, text, length)
        if warning:
            emit(Warned(warning))


_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _metadata(loaded: LoadedConcept, settings: SamplingSettings) -> dict[str, Any]:
    return {
        "schema": 1,
        **dataclasses.asdict(settings),
        "stage": loaded.stage,
        "run": loaded.card.run,
        "digest": loaded.card.document["digest"],
        "base": loaded.card.document["base"]["model"],
        "smoke": loaded.card.smoke,
    }


def _save_grid(
    folder: Path,
    images: Sequence[Any],
    n: int,
    prompts: Sequence[str],
    category: str,
    metadata: dict[str, Any],
) -> Path:
    sheet = contact_sheet(images, columns=n if len(prompts) > 1 else None)
    return save_picture(
        folder, f"grid-{slug(prompts[0].replace('{}', category))}", sheet, {**metadata, "prompts": list(prompts)}
    )
