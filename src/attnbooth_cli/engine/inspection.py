"""`inspect-attn`: makes a picture, or looks at one, and shows where each word of its prompt looks.

The same prompt may be looked at through several eyes, one `View` each: the base model with the category's word, the
concept after each stage, other projects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnbooth_cli.engine import concept, findings
from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.families import ComponentPool, Components
from attnbooth_cli.engine.generation import (
    LoadedConcept,
    load_base,
    load_concept,
    settings_for,
    warn_of_long_prompts,
)
from attnbooth_cli.engine.maps import POOLING, Branch, Recording, Selection, parse_steps
from attnbooth_cli.engine.methods import STAGE_NAMES, StageName
from attnbooth_cli.engine.question import without_placeholder
from attnbooth_cli.engine.sampling import Request, SamplingSettings
from attnbooth_cli.engine.tokens import Placeholder
from attnbooth_cli.engine.views import NOISE_LEVELS, View, fitted, make, recorder_for, see
from attnbooth_cli.engine.vocabulary import warn_of_unknown_words
from attnbooth_cli.engine.weights import write_tensors
from attnbooth_cli.errors import InputError
from attnbooth_cli.events import Advanced, Emit, ignore
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.manifest import Manifest
from attnbooth_cli.project.project import Project, images_folder, open_project
from attnbooth_cli.project.samples import save_picture, slug
from attnbooth_cli.project.shell import generate_command
from attnbooth_cli.reports import attention as drawn

SCHEMA = 2
BASE = "base model"
PAGE = "report.html"


@dataclass(frozen=True)
class InspectOptions:
    """What a person may choose.

    Attributes:
        words: All words of the prompt by default; `{}` or the token for [V].
        stage: The concept as it was after this stage.
        stages: Look through every stage the concept has, one beside the other.
        beside: Other projects to look at the same prompt through.
        base: Whether to look through the base model too, with the category's word, and measure how far the concept is
            from it.
        picture: An existing picture to look at in place of making one: a file, or the name of a training picture.
        resolution, step_range, head, branch: See `maps.Selection`; the range as "5-10".
        seed: Of the picture that is made, or of the noise an existing one is seen under.
        steps, guidance, size, scheduler, negative: As in `generate`.
        report: Whether to write the page.
    """

    words: tuple[str, ...] = ()
    stage: StageName | None = None
    stages: bool = False
    beside: tuple[Path, ...] = ()
    base: bool = True
    picture: Path | None = None
    resolution: int | None = None
    step_range: str | None = None
    head: int | None = None
    branch: Branch = "conditional"
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: str | None = None
    scheduler: str = "dpm++"
    negative: str = ""
    report: bool = False
    device: str = "auto"

    @property
    def selection(self) -> Selection:
        """What is read of the U-Net.

        Raises:
            InputError: a step range that is none.
        """
        steps = parse_steps(self.step_range) if self.step_range else None
        return Selection(self.resolution, steps, self.head, self.branch)


@dataclass(frozen=True)
class Views:
    """What was looked through.

    Attributes:
        main: The concept after the stage that was asked for, or its last.
        base: The base model.
        earlier: The concept after the stages before `main`, in order.
        beside: Other projects.
        settings: How pictures were made.
        own: The placeholder of the project that was named first.
    """

    main: View
    base: View | None
    earlier: tuple[View, ...]
    beside: tuple[View, ...]
    settings: SamplingSettings
    own: Placeholder

    @property
    def shown(self) -> list[View]:
        """In the order of training, then the others."""
        return [*([self.base] if self.base else []), *self.earlier, self.main, *self.beside]


@dataclass(frozen=True)
class Inspection:
    """What an inspection made.

    Attributes:
        report: The JSON document, also in `folder/attention.json`; it names files relative to the folder.
        sheet: The picture and every word's map side by side.
        comparison: The views below each other; None if there is one alone.
        page: The HTML page, if it was asked for.
    """

    folder: Path
    sheet: Path
    comparison: Path | None
    page: Path | None
    report: dict[str, Any]


def inspect_attention(
    root: Path | str, prompt: str | None = None, options: InspectOptions | None = None, *, emit: Emit = ignore
) -> Inspection:
    """Looks at one prompt and writes what was seen to a new folder in the project's `attention/`.

    Args:
        prompt: As for `generate`; with an existing picture, the training prompt by default.

    Raises:
        InputError: a word is not in the prompt, no layer has the resolution or the head, or options that contradict
            each other; otherwise as `generate`.
    """
    options = options or InspectOptions()
    check_options(prompt, options)
    project, manifest = open_project(Path(root))
    durable.remove_temporaries(project.root, durable.ABANDONED)
    card = concept.read_card(project)
    text = prompt if prompt is not None else str(card.document["plan"]["prompts"][0])
    card.placeholder.prompt(text)  # refuses one that names no concept before anything is loaded
    picture = _picture_at(project, manifest, options.picture)
    return _written(project, card, text, _views(project, card, text, picture, options, emit), options)


def check_options(prompt: str | None, options: InspectOptions) -> None:
    """Refuses what cannot be, before anything is loaded.

    Raises:
        InputError: see `inspect_attention`.
    """
    if prompt is None and options.picture is None:
        raise InputError("no prompt was given", 'for example "a photo of a {} on a beach", or --picture FILE')
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed must be between 0 and 2^63, not {options.seed}", None)
    if options.stage and options.stages:
        raise InputError("--stages shows every stage, and --stage chooses one", "leave out one of them")
    if options.branch == "unconditional" and options.picture:
        raise InputError("an existing picture is seen with its prompt alone", "leave out --branch or --picture")
    if options.guidance is not None and options.guidance <= 1 and options.branch == "unconditional":
        raise InputError("without guidance there is no unconditional branch", "choose a --guidance above 1")
    if options.picture and (options.steps or options.guidance is not None or options.negative):
        raise InputError(
            "--steps, --guidance and --negative are for pictures that are made", "leave them out, or --picture"
        )
    if options.step_range:
        parse_steps(options.step_range)


def _picture_at(project: Project, manifest: Manifest, named: Path | None) -> Image.Image | None:
    """An existing picture, by its path or by its name among the training pictures."""
    if named is None:
        return None
    own = images_folder(project, manifest)
    path = next((path for path in (named, own / named.name) if path.is_file()), None)
    if path is None:
        names = ", ".join(sorted(its.name for its in own.iterdir()))
        raise InputError(f"there is no picture {named}", f"a file, or a training picture: {names}")
    return pictures.load(path)


def _views(
    project: Project, card: Card, text: str, picture: Image.Image | None, options: InspectOptions, emit: Emit
) -> Views:
    """The project's last stage first, so that what cannot be read is refused at once."""
    stages = [*reversed(card.stages)] if options.stages else [card.stage(options.stage)]
    others = [(other, concept.read_card(other)) for other, _ in map(open_project, options.beside)]
    eyes = [(project, card, stage) for stage in stages]
    eyes += [(other, its, its.stage(None)) for other, its in others]
    pool = ComponentPool(keep=len(eyes) + options.base > 1)
    found: list[View] = []
    base: View | None = None
    settings: SamplingSettings | None = None
    for which, its, stage in eyes:
        loaded = load_concept(which, its, stage, options.device, "auto", emit, pool)
        prompt, words = _respelt(text, options.words, card.placeholder, its.placeholder)
        warn_of_long_prompts(loaded, [prompt], emit)
        if which is project and stage == stages[0]:
            warn_of_unknown_words(loaded.components.text_encoders[0].tokenizer, its.placeholder.token, [text], emit)
        own = _settings(loaded, options)
        settings = settings or own
        label = _label(which, stage, found, by_stage=which is project and (options.stages or not others))
        look = _Look(label, prompt, words, as_there=bool(found))
        view = View(
            label,
            str(which.root),
            its.run,
            stage,
            str(its.document["plan"]["method"]),
            prompt,
            *_look(loaded.components, its.placeholder, look, picture, own, options, emit),
            first_step=options.selection.steps[0] if options.selection.steps else 1,
        )
        found.append(view)
        if options.base and base is None:
            plain = without_placeholder(text.replace("{}", card.placeholder.token), card.placeholder)
            names = [card.placeholder.category if _names(word, card.placeholder) else word for word in options.words]
            untuned = load_base(loaded.base, options.device, "auto", pool)
            look = _Look(BASE, plain, names, as_there=True)
            looked = _look(untuned, card.placeholder, look, picture, settings, options, emit)
            base = dataclasses.replace(
                view, label=BASE, project=None, run=None, stage=None, method=None, prompt=plain,
                picture=looked[0], recording=looked[1],
            )  # fmt: skip
    assert settings is not None
    main, *earlier = found[: len(stages)]
    return Views(main, base, tuple(reversed(earlier)), tuple(found[len(stages) :]), settings, card.placeholder)


def _label(which: Project, stage: StageName, found: Sequence[View], *, by_stage: bool) -> str:
    """What a view is called: by its stage where it is one of several of a project, else by its project."""
    if by_stage:
        return f"after stage {stage}"
    taken = {BASE, *(f"after stage {name}" for name in STAGE_NAMES), *(view.label for view in found)}
    labels = (which.name, *(f"{which.name} ({number})" for number in range(2, len(found) + 3)))
    return next(label for label in labels if label not in taken)


def _names(word: str, placeholder: Placeholder) -> bool:
    """Whether a word asked for is [V]."""
    return word.lower() in ("{}", placeholder.token.lower())


def _respelt(text: str, words: Sequence[str], own: Placeholder, other: Placeholder) -> tuple[str, tuple[str, ...]]:
    """A prompt, with [V] spelt out, and the words asked for, for a concept that may have another token and category."""
    prompt = other.prompt(text.replace(f"{own.token} {own.category}", "{}").replace(own.token, "{}"))
    renamed = {own.category.lower(): other.category}
    return prompt, tuple("{}" if _names(word, own) else renamed.get(word.lower(), word) for word in words)


def _settings(loaded: LoadedConcept, options: InspectOptions) -> SamplingSettings:
    return settings_for(
        loaded.card,
        loaded.base,
        options.steps,
        options.guidance,
        options.size,
        options.scheduler,
        options.negative,
    )


@dataclass(frozen=True)
class _Look:
    """One look at a prompt.

    Attributes:
        label: Through whose eyes, for the progress.
        prompt: With [V] spelt out.
        words: To read; all for none.
        as_there: Whether some of them may be missing.
    """

    label: str
    prompt: str
    words: Sequence[str]
    as_there: bool


def _look(
    components: Components,
    placeholder: Placeholder,
    look: _Look,
    picture: Image.Image | None,
    settings: SamplingSettings,
    options: InspectOptions,
    emit: Emit,
) -> tuple[Image.Image, Recording, tuple[int, ...]]:
    """The picture, where its words looked, and for an existing picture the timesteps it was seen at."""
    guided = picture is None and settings.guidance > 1
    if options.branch == "unconditional" and not guided:
        raise InputError("without guidance there is no unconditional branch", "choose a --guidance above 1")
    recorder = recorder_for(
        components,
        placeholder,
        look.prompt,
        settings,
        options.selection,
        look.words,
        guided=guided,
        as_there=look.as_there,
    )
    total = settings.steps if picture is None else NOISE_LEVELS
    if (asked := options.selection.steps) and asked[1] > total:
        raise InputError(f"there is no step {asked[1]}", f"the last one is {total}")
    emit(Advanced(0, total, look.label))

    def after_step(step: int) -> None:
        emit(Advanced(step + 1, total, look.label))

    if picture is not None:
        shown = fitted(picture, settings)
        timesteps, recording = see(components, recorder, look.prompt, shown, options.seed, after_step)
        return shown, recording, timesteps
    (made,), recording = make(components, recorder, [Request(look.prompt, options.seed)], settings, after_step)
    return made, recording, ()


def _written(project: Project, card: Card, text: str, views: Views, options: InspectOptions) -> Inspection:
    """Writes everything into a folder that appears when it is whole; files are named in the report relative to it."""
    main = views.main
    stem = f"{slug(text.replace('{}', card.placeholder.category))}-{options.seed}"
    made = {"prompt": main.prompt, "seed": options.seed, **dataclasses.asdict(views.settings)}
    if options.picture is not None:  # nothing was sampled
        made |= {"source": str(options.picture), **dict.fromkeys(("steps", "guidance", "scheduler", "negative"))}
    eyes = [
        dataclasses.replace(findings.seen(view), command=_command(project, text, view, views, options))
        for view in views.shown
    ]
    mine = eyes[views.shown.index(main)]
    peak = drawn.peak(eyes)
    with durable.new_numbered_directory(project.attention, stem) as (folder, place):
        picture = save_picture(folder, "picture", main.picture, made)
        maps = {
            word: save_picture(folder, f"map-{slug(word)}", its, made).name
            for word, its in drawn.overlays(mine, peak).items()
        }
        sheet = save_picture(folder, "sheet", drawn.sheet(mine, peak), made)
        film = save_picture(folder, "film", drawn.film(mine), made)
        comparison = None
        if len(eyes) > 1:
            comparison = save_picture(folder, "comparison", drawn.comparison(eyes, mine, peak), made)
        write_tensors(folder / "maps.safetensors", findings.arrays(views.shown, main))
        documents = [findings.document(view, views.base) for view in views.shown]
        first = documents[views.shown.index(main)]
        for row in first["words"]:
            row["map"] = maps.get(row["word"])
        report = {
            "schema": SCHEMA,
            **made,
            **{name: value for name, value in first.items() if name not in ("label", "prompt")},
            "smoke": card.smoke,
            "pooling": POOLING,
            "selection": dataclasses.asdict(options.selection),
            "colour_scale": {"min": 0.0, "max": peak, "shared": True},
            "picture": picture.name,
            "sheet": sheet.name,
            "film": film.name,
            "comparison": comparison.name if comparison else None,
            "views": documents,
        }
        durable.write_json(folder / "attention.json", report)
        durable.write_text(folder / "attention.csv", findings.table(documents))
        if options.report:
            drawn.write_page(folder / PAGE, text, eyes, mine, report)
    return Inspection(
        place,
        place / sheet.name,
        place / comparison.name if comparison else None,
        place / PAGE if options.report else None,
        report,
    )


def _command(project: Project, text: str, view: View, views: Views, options: InspectOptions) -> str | None:
    """What makes a view's picture again; None for the base model's, and for a picture there was."""
    if view.project is None or options.picture is not None:
        return None
    prompt = text
    if view.project != str(project.root):  # whose token is another
        prompt = text.replace(f"{views.own.token} {views.own.category}", "{}").replace(views.own.token, "{}")
    settings = dataclasses.asdict(views.settings)
    return generate_command(view.project, prompt, seed=options.seed, stage=str(view.stage), **settings)
