"""What `train` needs before torch: the project opened, pictures checked, base model found, plan built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import platformdirs

from attnbooth_cli.engine.base_models import BaseModel, resolve
from attnbooth_cli.engine.catalogue import WITHDRAWN
from attnbooth_cli.engine.layers import build_plan, check_settings
from attnbooth_cli.engine.model_files import CONFIGS, TOKENIZER_FILES, weights_in
from attnbooth_cli.engine.plan import Base, PictureFile, Plan
from attnbooth_cli.engine.weight_hashes import file_sha256
from attnbooth_cli.errors import BaseModelError, InputError
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.manifest import Manifest, read_user_config
from attnbooth_cli.project.project import Project, images_folder, open_project
from attnbooth_cli.project.shell import command


@dataclass(frozen=True)
class TrainOptions:
    """What the command line may change; None and empty mean "not said". See `engine.layers` for the order of layers."""

    fast: bool = False
    smoke: bool = False
    method: str | None = None
    seed: int | None = None
    device: str | None = None
    precision: str | None = None
    save_precision: str | None = None
    sample_every: int | None = None
    snapshot_every: int | None = None
    deterministic: bool | None = None
    memory: str | None = None
    settings: tuple[str, ...] = ()

    def flags(self) -> dict[str, object]:
        """The flags as settings."""
        names = (field.name for field in fields(self) if field.name not in ("fast", "smoke", "settings"))
        return {f"train.{name}": getattr(self, name) for name in names}


@dataclass(frozen=True)
class Prepared:
    """Everything a run starts from. `warnings` are sentences for the person."""

    project: Project
    manifest: Manifest
    base: BaseModel
    plan: Plan
    warnings: tuple[str, ...]


def check_options(options: TrainOptions, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses wrong settings before any project is touched and before torch is loaded.

    Raises:
        InputError: an unknown setting or a wrong value on the command line or in the environment.
    """
    check_settings(environment, options.flags(), options.settings)


def prepare(root: Path, options: TrainOptions, environment: Mapping[str, str] = os.environ) -> Prepared:
    """Opens a project and resolves its plan; writes nothing.

    Raises:
        InputError: no project, invalid manifest or settings, bad pictures.
        BaseModelError: the base model is not on this machine.
    """
    project, manifest = open_project(root)
    survey = pictures.survey([images_folder(project, manifest)])
    base = resolve(manifest.base.model, revision=manifest.base.revision)
    plan, warnings = build_plan(
        manifest,
        base=describe(base),
        entry=base.entry,
        resolution=base.resolution,
        pictures=[PictureFile(picture.path.name, durable.sha256(picture.path)) for picture in survey.pictures],
        user_config=read_user_config(user_config_path(environment)),
        environment=environment,
        flags=options.flags(),
        assignments=options.settings,
        fast=options.fast,
        smoke=options.smoke,
    )
    return Prepared(project, manifest, base, plan, (*warnings, *pictures.warnings_about(survey, plan.resolution)))


def user_config_path(environment: Mapping[str, str]) -> Path:
    """The user's configuration file: `ATTNBOOTH_CONFIG`, or the platform's usual place (where it need not exist).

    Raises:
        InputError: the named file is not there.
    """
    named = environment.get("ATTNBOOTH_CONFIG")
    if not named:
        return platformdirs.user_config_path("attnbooth") / "config.toml"
    if not Path(named).is_file():
        raise InputError(f"ATTNBOOTH_CONFIG names {named}, which is not a file", "correct it or unset it")
    return Path(named)


def describe(base: BaseModel) -> Base:
    """The base model as plans record it."""
    return Base(base.ref, base.revision, weights_sha256(base), base.prediction_type)


def weights_sha256(base: BaseModel) -> str:
    """SHA-256 that tells whether two copies of a base model have the same U-Net.

    Of the file itself for a single file; otherwise of the U-Net's weight files in name order (their digests joined).
    """
    if base.kind == "file":
        return file_sha256(base.path)
    pattern = f"*.{base.variant}.safetensors" if base.variant else "*.safetensors"
    files = sorted((base.path / "unet").glob(pattern))
    plain = [path for path in files if base.variant or (".fp16." not in path.name and ".non_ema." not in path.name)]
    digests = [file_sha256(path) for path in plain]
    return digests[0] if len(digests) == 1 else durable.sha256_of_text("\n".join(digests))


def file_hashes(base: BaseModel) -> dict[str, str]:
    """SHA-256 of every file a base model is loaded from, by its path in the model: all that decides what is learned.

    Weights other than those that are loaded are left out, and so is the judge that `tiny` brings.
    """
    folder = base.path if base.kind != "file" else base.config
    files = {base.path.name: base.path} if base.kind == "file" else {}
    if folder is not None:
        picked = {} if base.kind == "file" else weights_in(folder)
        names = [
            *(f"{part}/{name}" for part, name in CONFIGS.items()),
            *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
            *(f"{part}/{name}" for part, weights in picked.items() if weights for name in weights.files),
        ]
        files |= {name: folder / name for name in names if (folder / name).is_file()}
    return {name: file_sha256(path) for name, path in sorted(files.items())}


def changed_files(base: BaseModel, recorded: object) -> list[str]:
    """The files of a base model that are others than recorded, missing or new, by their path in the model.

    Args:
        recorded: What `file_hashes` gave; nothing is known to have changed if it is no table.
    """
    if not isinstance(recorded, dict):
        return []
    now = file_hashes(base)
    return sorted(name for name in {*now, *map(str, recorded)} if now.get(name) != recorded.get(name))


def require_same_files(base: BaseModel, recorded: object, root: Path) -> None:
    """Refuses to go on with a run on a base model of which any file is another than when it began.

    Args:
        recorded: What `file_hashes` gave then; None in runs of older versions, of which the U-Net alone is known.
        root: Of the project, for the hint.

    Raises:
        BaseModelError: some are; the message names them.
    """
    if changed := changed_files(base, recorded):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise BaseModelError(
            f"the base model {base.ref} has other files than when this run began ({', '.join(changed[:3])}{more})",
            f"put the former model back, or begin again with: {command('train', root, '--restart')}",
        )


def base_of_plan(plan: Plan, manifest: Manifest, root: Path) -> BaseModel:
    """The base model that the recorded plan of the project at `root` was made with, from where its manifest says that
    it is now.

    Raises:
        BaseModelError: it is gone, or the one in its place has other weights.
    """
    moved = plan.base.model not in (manifest.base.model, WITHDRAWN.get(manifest.base.model))
    ref, revision = (manifest.base.model, manifest.base.revision) if moved else (plan.base.model, plan.base.revision)
    base = resolve(ref, revision=revision)
    if weights_sha256(base) != plan.base.sha256:
        raise BaseModelError(
            f"the base model {ref} has other weights than {plan.base.model} when this run began",
            f"put the former model back, or begin again with: {command('train', root, '--restart')}",
        )
    return base


def check_pictures_of_plan(project: Project, manifest: Manifest, plan: Plan) -> list[Path]:
    """The training pictures a recorded plan was made with, in its order.

    Raises:
        InputError: one is missing or changed.
    """
    folder = images_folder(project, manifest)
    paths = [folder / picture.name for picture in plan.pictures]
    for path, picture in zip(paths, plan.pictures, strict=True):
        if not path.is_file() or durable.sha256(path) != picture.sha256:
            raise InputError(
                f"the training picture {path} is missing or changed since this run began",
                f"put it back, or begin again with: {command('train', project.root, '--restart')}",
            )
    return paths
