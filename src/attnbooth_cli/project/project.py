"""Where things are inside a concept project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attnbooth_cli.errors import InputError
from attnbooth_cli.project.manifest import Manifest, read_manifest
from attnbooth_cli.project.shell import command

MANIFEST_NAME = "attnbooth.toml"


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


def open_project(root: Path) -> tuple[Project, Manifest]:
    """Finds a project and reads its manifest.

    Raises:
        InputError: there is none, or its manifest is invalid.
    """
    project = Project(Path(root))
    if not project.root.is_dir():
        raise InputError(f"there is no folder {root}", command("init", root, "--category", "cat", "--images", "PHOTOS"))
    if not project.manifest.exists():
        raise InputError(
            f"{root} is not a concept project (no {MANIFEST_NAME})", command("init", root, "--category", "...")
        )
    return project, read_manifest(project.manifest)


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
    inside = project.root.resolve()
    for path in (folder, *folder.iterdir()):
        if not path.resolve().is_relative_to(inside):
            raise InputError(f"{path} leads out of the project", "copy the pictures into the project instead")
    return folder
