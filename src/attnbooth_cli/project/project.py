"""Where things are inside a concept project."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbooth_cli.errors import InputError
from attnbooth_cli.project.durable import aside
from attnbooth_cli.project.shell import command

if TYPE_CHECKING:
    from attnbooth_cli.project.manifest import Manifest

MANIFEST_NAME = "attnbooth.toml"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


@dataclass(frozen=True)
class Project:
    """A project folder. Nothing here touches the disk."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the person declares."""
        return self.root / MANIFEST_NAME

    @property
    def concept(self) -> Path:
        """The result."""
        return self.root / "concept"

    @property
    def samples(self) -> Path:
        """Generated pictures."""
        return self.root / "samples"

    @property
    def evaluation(self) -> Path:
        """Reports of `eval`."""
        return self.root / "eval"

    @property
    def attention(self) -> Path:
        """Reports of `inspect-attn`."""
        return self.root / "attention"

    @property
    def held_out(self) -> Path:
        """Pictures of the concept that it is not trained on, where there are any."""
        return self.root / "held-out"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.root / "runs"

    @property
    def state(self) -> Path:
        """What the machine records."""
        return self.root / "state.json"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name


def require_folder(root: Path) -> None:
    """Refuses what is no folder.

    Raises:
        InputError: it is a file, or there is nothing.
    """
    if root.is_dir():
        return
    if root.exists():
        raise InputError(f"{root} is a file, and a project is a folder", "give the project's folder")
    raise InputError(f"there is no folder {root}", command("init", root, "--category", "cat", "--images", "PHOTOS"))


def open_project(root: Path) -> tuple[Project, Manifest]:
    """Finds a project and reads its manifest.

    Raises:
        InputError: there is none, or its manifest is invalid.
    """
    from attnbooth_cli.project.manifest import read_manifest  # pydantic: most of the time of a --help that does without

    project = Project(Path(root))
    require_folder(project.root)
    if not project.manifest.exists():
        raise InputError(
            f"{root} is not a concept project (no {MANIFEST_NAME})", command("init", root, "--category", "...")
        )
    places = (project.concept, project.samples, project.evaluation, project.attention, project.runs, project.held_out)
    replaced = aside(project.concept)  # what stands in for the concept after a crash
    require_inside(project, (project.manifest, project.state, *places, replaced))
    for place in (*places, replaced):
        _require_plain(project, place)
    return project, read_manifest(project.manifest)


def _require_plain(project: Project, folder: Path) -> None:
    """Refuses what a stranger may have put into a folder or below it: links out of the project, pipes and devices.

    The kind of an entry comes with its name, so that many thousand pictures cost no time.

    Raises:
        InputError: something there is of that kind.
    """
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    require_inside(project, [Path(entry.path)])
                elif entry.is_dir():
                    waiting.append(entry.path)
                elif not entry.is_file() and os.path.lexists(entry.path):  # else it has gone meanwhile
                    raise InputError(f"{entry.path} is neither a file nor a folder", "remove it")


def is_plain_name(name: object) -> bool:
    """Whether a recorded name stays in the folder it is put into: no path, and not hidden."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def require_inside(project: Project, paths: Iterable[Path]) -> None:
    """Refuses symbolic links through which a project, which may be a stranger's, would read or write elsewhere.

    Raises:
        InputError: one of `paths` leads out of the project.
    """
    inside = project.root.resolve()
    for path in paths:
        try:
            is_inside = path.resolve().is_relative_to(inside)
        except (OSError, RuntimeError):  # a link to itself
            is_inside = False
        if not is_inside:
            raise InputError(f"{path} leads out of the project", "put a copy of it in the link's place")


def images_folder(project: Project, manifest: Manifest) -> Path:
    """The folder of training pictures, which must really lie inside the project.

    Raises:
        InputError: it does not exist, or a symbolic link leads out of the project.
    """
    folder = project.root / manifest.concept.images
    if not folder.is_dir():
        raise InputError(
            f"{folder} does not exist", f"put the training pictures there, or run {command('init', project.root)}"
        )
    require_inside(project, (folder, *folder.iterdir()))
    return folder
