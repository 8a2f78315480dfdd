"""What a diffusers folder or a single-file checkpoint is, told from its text files and its header alone.

Models of a kind the method is not made for are refused by name, and pickles are named and never opened. No tensor is
read here. Must import neither torch, diffusers nor transformers.
"""

from __future__ import annotations

import json
import re
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from attnbooth_cli.engine import model_files
from attnbooth_cli.engine.catalogue import DEFAULT_MODEL
from attnbooth_cli.errors import InputError

FAMILY = "stable-diffusion"
USE_INSTEAD = f"use a Stable Diffusion 1.x or 2.x text-to-image model, such as `{DEFAULT_MODEL}` or `tiny`"
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
    "scheduler": ("diffusers", re.compile(r"\w+Scheduler")),  # any other class could bring parts of its own
    "text_encoder": ("transformers", re.compile("CLIPTextModel")),
    "tokenizer": ("transformers", re.compile("CLIPTokenizer(Fast)?")),
    "unet": ("diffusers", re.compile("UNet2DConditionModel")),
    "vae": ("diffusers", re.compile("AutoencoderKL")),
}
_PREDICTIONS = ("epsilon", "v_prediction")
_JSON_LIMIT = 4_000_000
# The safetensors format's own bound on a header.
_HEADER_LIMIT = 100_000_000


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
        raise InputError(f"{folder} is not a diffusers pipeline: it has no model_index.json", USE_INSTEAD)
    require_own_files(folder, ["model_index.json", *_CLASSES])
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if isinstance(name, list):
        raise InputError(f"{folder} needs pipeline code of its own ({name}), which is never run", USE_INSTEAD)
    if not isinstance(name, str):
        raise InputError(f"{folder / 'model_index.json'} names no pipeline class", USE_INSTEAD)
    if name != _PIPELINE:
        what = next((what for start, what in _FOREIGN_PIPELINES if name.startswith(start)), f"a {name}")
        raise _unsupported(folder, what)
    for part, (library, classes) in _CLASSES.items():
        _require_class(folder, part, index.get(part), library, classes)
    channels = read_json(folder / "unet" / "config.json").get("in_channels", 4)
    if channels != read_json(folder / "vae" / "config.json").get("latent_channels", 4):
        # More than the latents go in: a picture to edit, a mask, a depth map.
        known = _CHANNELS.get(channels) if isinstance(channels, int) else None
        raise _unsupported(folder, known or f"a model whose U-Net takes {channels} channels")
    if not model_files.has_configs(folder):
        raise InputError(f"{folder} is incomplete: a configuration or the tokenizer is missing", USE_INSTEAD)
    if weights:
        require_weights(folder, model_files.WEIGHTED)
    return FAMILY


def identify_file(path: Path) -> FileKind:
    """What a single-file checkpoint is, by the names and shapes in its header; no tensor is read.

    Raises:
        InputError: a pickle, not a whole safetensors file, or not a Stable Diffusion 1.x or 2.x checkpoint.
    """
    if path.suffix.lower() in model_files.PICKLE_SUFFIXES:
        raise InputError(f"{path} is a pickle, which can run code and is never loaded", _CONVERT)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path} is not a .safetensors file", USE_INSTEAD)
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
    size = read_json(folder / "unet" / "config.json").get("sample_size")
    blocks = read_json(folder / "vae" / "config.json").get("block_out_channels")
    if isinstance(size, int) and not isinstance(size, bool) and size > 0 and isinstance(blocks, list) and blocks:
        return int(size * 2 ** (len(blocks) - 1))
    return None


def prediction_type(folder: Path) -> str:
    """What the U-Net of a diffusers folder predicts, by its scheduler.

    Raises:
        InputError: something the losses do not know.
    """
    kind = read_json(folder / "scheduler" / model_files.CONFIGS["scheduler"]).get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise InputError(
            f"the scheduler in {folder} predicts {kind!r}, which is not supported", f"supported: {_PREDICTIONS}"
        )
    return str(kind)


def _unsupported(place: Path, what: str) -> InputError:
    return InputError(
        f"{place} is {what}; supported are Stable Diffusion 1.x and 2.x text-to-image models", USE_INSTEAD
    )


def require_own_files(folder: Path, names: Sequence[str]) -> None:
    """Refuses links that lead out of a model's folder, but those of the hub's cache, which lead to its `blobs`.

    Args:
        names: What is read in the folder: files, and folders with all that is in them.

    Raises:
        InputError: one does.
    """
    root = folder.resolve()
    homes = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    for name in names:
        place = folder / name
        for path in (place, *(place.iterdir() if place.is_dir() else ())):
            if not any(path.resolve().is_relative_to(home) for home in homes):
                raise InputError(f"{path} leads out of {folder}", "copy what it leads to into the folder")


def _require_class(folder: Path, part: str, value: Any, library: str, classes: re.Pattern[str]) -> None:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(item, str) for item in value):
        raise InputError(f"{folder / 'model_index.json'} names no {part}", USE_INSTEAD)
    if value[0] != library:
        raise InputError(f"the {part} in {folder} needs code of its own ({value}), which is never run", USE_INSTEAD)
    if not classes.fullmatch(value[1]):
        raise _unsupported(folder, f"a pipeline whose {part} is a {value[1]}")


def require_weights(folder: Path, parts: Mapping[str, str]) -> None:
    """Refuses a folder in which a component (subfolder to stem of its weight files) has no whole safetensors weights.

    Raises:
        InputError: they are missing or pickles.
    """
    for part, stem in parts.items():
        place = folder / part
        names = [path.name for path in place.iterdir()] if place.is_dir() else []
        if (picked := model_files.pick_weights(stem, names)) is not None:
            if empty := [name for name in picked.files if (place / name).stat().st_size == 0]:
                raise InputError(f"{place / empty[0]} is empty", "copy or download the model again")
            for name in picked.files:
                if name.endswith(".json"):
                    _require_own_shards(place / name, picked.files)
            continue
        if any(name.endswith(model_files.PICKLE_SUFFIXES) for name in names):
            raise InputError(
                f"the weights in {place} are pickles, which can run code and are never loaded; .safetensors are needed",
                _CONVERT,
            )
        raise InputError(f"{place} has no weights: {stem}.safetensors is missing or its shards are not all there")


def _require_own_shards(index: Path, files: Sequence[str]) -> None:
    """Refuses an index that sends the loader to files other than the shards beside it: pickles, or another folder's.

    Raises:
        InputError: it does.
    """
    weight_map = read_json(index).get("weight_map")
    named = weight_map.values() if isinstance(weight_map, dict) else ()
    if wrong := next((repr(name) for name in named if name not in files), None):
        raise InputError(f"{index} names {wrong}, which is none of its shards", "copy or download the model again")


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file.

    Raises:
        InputError: missing, unreadable, too large or not a JSON object.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise InputError(f"{path} is not a file", USE_INSTEAD)
        if status.st_size > _JSON_LIMIT:
            raise InputError(f"{path} is too large to be a configuration")
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing", USE_INSTEAD) from error
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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a file", USE_INSTEAD)
        size = status.st_size
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
