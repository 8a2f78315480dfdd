"""A folder of photos becomes a concept project: pictures checked and copied in, base model fetched, manifest written.

Everything is checked before the first byte is written, and the manifest comes last: until then there is no project.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbooth_cli.engine.base_models import BaseModel, resolve, resolve_judge
from attnbooth_cli.engine.catalogue import BUNDLED, DEFAULT_MODEL, WITHDRAWN
from attnbooth_cli.engine.vocabulary import is_known, known_nouns
from attnbooth_cli.errors import BaseModelError, InputError
from attnbooth_cli.events import Emit, Warned, ignore
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.lock import locked
from attnbooth_cli.project.manifest import Manifest, check_category, check_token, manifest_text
from attnbooth_cli.project.project import MANIFEST_NAME, Project, open_project, require_folder
from attnbooth_cli.project.samples import slug
from attnbooth_cli.project.shell import command

EXAMPLE = ("mushroom", "mushroom")
"""Folder under `assets/example` and category of `init --example`."""

KNOWN_PIECE_LENGTH = 3.0
"""A folder name is taken as a category only if its words' pieces average this many characters (our choice)."""

_NOT_CATEGORIES = {
    "album", "archive", "camera", "camera roll", "concept", "data", "dataset", "dcim", "desktop", "dji", "documents",
    "downloads", "dsc", "dscf", "dscn", "folder", "gh", "gopr", "gopro", "gx", "image", "images", "img", "input",
    "instance", "mov", "mvi", "new folder", "output", "photo", "photos", "pic", "pics", "picture", "pictures",
    "project", "pxl", "sam", "sample", "samples", "screenshot", "screenshots", "temp", "test", "tmp", "train",
    "training", "untitled", "untitled folder", "vid", "video", "videos", "whats app images", "whatsapp images",
}  # fmt: skip


@dataclass(frozen=True)
class Declaration:
    """What `init` is told; None means "not said".

    Attributes:
        model: A base model's reference.
        token: The text that stands for [V].
    """

    category: str | None = None
    model: str | None = None
    token: str | None = None
    resolution: int | None = None


@dataclass(frozen=True)
class Initialised:
    """What `init` did.

    Attributes:
        pieces: How the base model's tokenizer reads the category; [V] starts from the first.
        derived: Whether the category came from the folder's name.
        earlier: Pictures that were in the project before and are trained on too.
    """

    project: Project
    category: str
    token: str
    model: str
    revision: str | None
    resolution: int
    pictures: tuple[Path, ...]
    earlier: int
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    pieces: tuple[str, ...]
    derived: bool


def init(
    root: Path | str,
    *,
    images: Sequence[Path | str] = (),
    category: str | None = None,
    model: str | None = None,
    token: str | None = None,
    resolution: int | None = None,
    force: bool = False,
    example: bool = False,
    emit: Emit = ignore,
    bars: bool = False,
) -> Initialised:
    """Makes `root` a project.

    Args:
        images: Pictures, or folders of them; without any, `root/images` or `root` itself.
        category: The noun the concept is one of; derived from the folder's name when absent.
        model: Base model; the paper's by default, downloaded and pinned if it is on the hub.
        force: Replace an existing manifest (pictures are added, runs and concept stay).
        example: Bundled pictures and the bundled base model.
        bars: Whether a download may draw progress bars.

    Raises:
        InputError: no usable pictures, no category, a category or token that will not do, or a project is there.
        BaseModelError: the base model cannot be obtained.
        ResourceError: the place cannot be written.
    """
    project = Project(Path(root))
    _require_place(project, force)
    if resolution is not None and (resolution % 8 or not 16 <= resolution <= 4096):
        raise InputError(f"--resolution must be a multiple of 8 between 16 and 4096, not {resolution}", None)
    if example:
        folder, example_category = EXAMPLE
        images = images or [Path(__file__).parent.parent / "assets" / "example" / folder]
        category, model = category or example_category, model or BUNDLED
    survey = pictures.survey([Path(image) for image in images] or [_own_pictures(project)])
    ask = _say_what_it_is(project, model, images)
    _require_names(project, category, token, ask)
    base = resolve(model or DEFAULT_MODEL, download=True, say=lambda text: emit(Warned(text)), bars=bars)
    if base.kind == "hub":
        _fetch_judge(base, emit, bars=bars)
    category, token, pieces, derived = _names(project, base, Declaration(category, model, token, resolution), ask)
    if not is_known(base.entry, category):
        emit(Warned(f"the base model was not trained on a {category!r}; {known_nouns(base.entry, category)}"))
    for warning in pictures.warnings_about(survey, resolution or base.resolution):
        emit(Warned(warning))
    with _made_or_removed(project.root), locked(project.root):
        durable.remove_temporaries(project.root, durable.ABANDONED)
        copied = pictures.copy_in(survey, project.root / "images")
        text = manifest_text(
            name=project.name[:100].encode(errors="replace").decode(),  # a name may hold bytes that are no text
            category=category,
            token=token,
            model=str(base.path.resolve()) if base.kind in ("folder", "file") else base.ref,
            revision=base.revision,
            resolution=resolution,
            native_resolution=base.resolution,
        )
        durable.write_text(project.manifest, text)
    return Initialised(
        project=project,
        category=category,
        token=token,
        model=base.ref,
        revision=base.revision,
        resolution=resolution or base.resolution,
        pictures=copied,
        earlier=len(pictures.survey([project.root / "images"]).pictures) - len(copied),
        notes=tuple(f"{picture.path.name}: {note}" for picture in survey.pictures for note in picture.notes),
        skipped=tuple(f"{skipped.path.name}: {skipped.reason}" for skipped in survey.skipped),
        pieces=pieces,
        derived=derived,
    )


def init_bare_folder(root: Path, declaration: Declaration, emit: Emit, *, bars: bool = False) -> Initialised | None:
    """Initialises a folder of pictures in place, the originals untouched; does nothing where there is a manifest.

    Raises:
        InputError: the manifest that is there says otherwise than `declaration`; and as `init`.
    """
    manifest = Project(root).manifest
    if not manifest.exists():
        require_folder(root)
    elif int(os.environ.get("WORLD_SIZE", "1")) == 1:
        check_declaration(root, declaration)
        return None
    from attnbooth_cli.engine.devices import decided_by_main  # torch, which a mistake need not wait for

    def made() -> Initialised | None:
        # Asked by the main process for all: a late one would find what this has just made.
        if manifest.exists():
            return None
        return init(root, **dataclasses.asdict(declaration), emit=emit, bars=bars)

    initialised = decided_by_main(made)
    if initialised is None:
        check_declaration(root, declaration)
    return initialised


def check_declaration(root: Path, declaration: Declaration) -> None:
    """Checks that what is declared on the command line is what a project's manifest says already.

    Raises:
        InputError: it is not, or this is no project.
    """
    project, manifest = open_project(root)
    concept, base = manifest.concept, manifest.base
    wanted_category = declaration.category and _checked("--category", check_category, declaration.category)
    said: dict[str, tuple[object, object, bool]] = {
        "category": (declaration.category, concept.category, wanted_category == concept.category),
        "token": (declaration.token, concept.token, declaration.token == concept.token),
        "model": (declaration.model, base.model, _is_same_model(declaration.model, base.model)),
        "resolution": (declaration.resolution, *_resolution(manifest, declaration.resolution)),
    }
    for name, (wanted, declared, same) in said.items():
        if wanted is not None and not same:
            hint = "--set train.resolution=N" if name == "resolution" else f"change it in {MANIFEST_NAME}"
            raise InputError(
                f"--{name} {wanted} contradicts {project.manifest} ({declared})", f"leave it out, or {hint}"
            )


def _is_same_model(said: str | None, declared: str) -> bool:
    """Whether a reference is the one in a manifest, where `init` writes a folder's whole path and a withdrawn model's
    successor."""
    return said is not None and declared in (said, WITHDRAWN.get(said), str(Path(said).expanduser().resolve()))


def _resolution(manifest: Manifest, said: int | None) -> tuple[int | None, bool]:
    """The manifest's resolution, or that of its base model where it has none, and whether that is what was said."""
    declared = manifest.train.resolution
    if declared is None and said is not None:
        declared = resolve(manifest.base.model, revision=manifest.base.revision).resolution
    return declared, said == declared


def category_from_name(name: str) -> str | None:
    """`my_cat` -> cat, `the-red-teapot2` -> red teapot; None for camera junk and the like."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", name).lower().split()
    if words and words[0] in ("my", "the"):
        words = words[1:]
    text = re.sub(r"[\d ]+$", "", " ".join(words))
    if len(text) < 2 or text in _NOT_CATEGORIES or any(character.isdigit() for character in text):
        return None
    return text


def _names(
    project: Project, base: BaseModel, declared: Declaration, ask: str
) -> tuple[str, str, tuple[str, ...], bool]:
    """Category, token, the category's pieces, and whether the category was derived; all checked by the tokenizer.

    Args:
        ask: What to do about a name that is no category.
    """
    from attnbooth_cli.engine.families import load_tokenizer
    from attnbooth_cli.engine.tokens import category_pieces, placeholder, require_new_token

    tokenizer = load_tokenizer(base)
    derived = declared.category is None
    category = declared.category or category_from_name(project.name)
    assert category is not None  # `_require_names`
    category = _checked("--category", check_category, category)
    instead = known_nouns(base.entry, category)
    if derived and not _well_known(tokenizer, category):
        raise InputError(
            f"{category!r} (from the folder's name) is not a word the base model's tokenizer knows",
            f"{ask}; {instead}" if instead else ask,
        )
    pieces = category_pieces(tokenizer, category, instead)
    token = _checked("--token", check_token, declared.token or f"<{slug(project.name, 40)}>")
    require_new_token(tokenizer, placeholder(token, 1, category))
    return category, token, pieces, derived


def _require_names(project: Project, category: str | None, token: str | None, ask: str) -> None:
    """Checks what needs no base model, before one is downloaded.

    Args:
        ask: What to do about a folder whose name is no category.
    """
    if category is None and (category := category_from_name(project.name)) is None:
        raise InputError(f"the folder's name {project.name!r} does not say what the concept is", ask)
    _checked("--category", check_category, category)
    if token is not None:
        _checked("--token", check_token, token)


def _say_what_it_is(project: Project, model: str | None, images: Sequence[Path | str]) -> str:
    """The same `init` with a category."""
    said = [*(["--model", model] if model else []), *(word for image in images for word in ("--images", image))]
    return f"say what it is: {command('init', project.root, *said, '--category', 'cat')}"


def _well_known(tokenizer: Any, category: str) -> bool:
    counts = [(len(word), len(tokenizer.tokenize(word))) for word in category.split()]
    return all(pieces == 1 or length / max(pieces, 1) >= KNOWN_PIECE_LENGTH for length, pieces in counts)


def _checked(flag: str, check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except ValueError as error:
        raise InputError(f"{flag} {error}", None) from None


def _require_place(project: Project, force: bool) -> None:
    if project.root.exists() and not project.root.is_dir():
        raise InputError(f"{project.root} is a file, not a folder", "choose another name for the project")
    if project.manifest.exists() and not force:
        raise InputError(
            f"{project.root} is a project already ({MANIFEST_NAME} exists)",
            f"{command('train', project.root)}, or init with --force to write a new manifest",
        )


def _fetch_judge(base: BaseModel, emit: Emit, *, bars: bool) -> None:
    """Gets what `eval` will need while there is a network; without it everything else still works."""
    try:
        resolve_judge(base.entry.judge, download=True, say=lambda text: emit(Warned(text)), bars=bars)
    except BaseModelError as error:
        emit(Warned(f"eval's judge is not there yet: {error.message}"))


@contextlib.contextmanager
def _made_or_removed(root: Path) -> Iterator[None]:
    """Makes a folder that is not there yet, and removes it again if the block fails."""
    existed = root.exists()
    with durable.explained_write(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(root, ignore_errors=True)
        raise


def _own_pictures(project: Project) -> Path:
    """Where an in-place `init` takes pictures from."""
    if not project.root.is_dir():
        raise InputError(
            "no pictures were given", command("init", project.root, "--images", "FOLDER", "--category", "cat")
        )
    images = project.root / "images"
    return images if images.is_dir() and any(images.iterdir()) else project.root
