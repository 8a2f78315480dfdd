"""The parts of a diffusers folder, each loaded by its own class: memory-mapped, in float32, and nothing twice.

`StableDiffusionPipeline.from_pretrained` gives the same parts. It also imports every pipeline it might have to convert,
and transformers prepares the renaming rules of all its models before it reads one: together longer than reading a small
model takes. What was stored in float32 stays a mapping of the file, so it is in memory once, and only where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from attnbooth_cli.engine import libraries  # noqa: F401
from attnbooth_cli.engine.identify import read_json
from attnbooth_cli.engine.model_files import WEIGHTED, names_in, pick_weights
from attnbooth_cli.engine.weights import mapped_tensors
from attnbooth_cli.errors import InputError

_PREFIX = "text_model."
"""Of every parameter's name, in files of some versions of transformers and not of others."""
_POSITIONS = "position_ids"
"""A buffer that older files hold; it only counts."""


@dataclass(frozen=True)
class Parts:
    """What a folder holds beside its tokenizer. Weights are float32, on the CPU.

    Attributes:
        scheduler: The sampler it was saved with.
    """

    text_encoder: Any
    vae: Any
    unet: Any
    scheduler: Any


def load_parts(folder: Path, variant: str | None) -> Parts:
    """Loads all parts.

    Args:
        variant: "fp16" where there are only half-precision weights.

    Raises:
        InputError: the text encoder was saved in a form that is not understood.
        OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError: it does not fit
            together, as the libraries say.
    """
    import diffusers
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    how: dict[str, Any] = {
        "use_safetensors": True, "local_files_only": True, "variant": variant, "torch_dtype": torch.float32,
    }  # fmt: skip
    _, scheduler_class = read_json(folder / "model_index.json")["scheduler"]  # a name that `identify` has let pass
    return Parts(
        text_encoder=load_text_encoder(folder / "text_encoder", variant),
        vae=AutoencoderKL.from_pretrained(str(folder / "vae"), **how),
        unet=UNet2DConditionModel.from_pretrained(str(folder / "unet"), **how),
        scheduler=getattr(diffusers, scheduler_class).from_pretrained(str(folder / "scheduler")),
    )


def load_text_encoder(folder: Path, variant: str | None) -> Any:
    """A CLIP text encoder; by transformers' own loader where the names in its files are none we know.

    Raises:
        As `load_parts`.
    """
    from accelerate import init_empty_weights
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights():
        model = CLIPTextModel(CLIPTextConfig.from_pretrained(str(folder), local_files_only=True))
    tensors = _named_as_in(model, _stored(folder))
    if tensors is not None:
        model.load_state_dict(tensors, assign=True)
        return model
    model = CLIPTextModel.from_pretrained(
        str(folder), use_safetensors=True, local_files_only=True, variant=variant, dtype=torch.float32
    )
    _require_its_weights(folder, model)
    return model


def _stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a component's weight files."""
    picked = pick_weights(WEIGHTED["text_encoder"], names_in(folder))
    files = [name for name in (picked.files if picked else ()) if name.endswith(".safetensors")]
    return {name: tensor for file in files for name, tensor in mapped_tensors(folder / file).items()}


def _named_as_in(model: Any, stored: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Stored tensors in float32 by the model's own names, or None if they are not exactly the model's."""
    bare = {name.removeprefix(_PREFIX): its for name, its in stored.items() if not name.endswith(_POSITIONS)}
    own = {name.removeprefix(_PREFIX): name for name in model.state_dict()}
    if bare.keys() != own.keys():
        return None
    return {own[name]: tensor.float() for name, tensor in bare.items()}


def _require_its_weights(folder: Path, model: Any) -> None:
    """Checks that the text encoder holds the stored weights.

    transformers has changed the names of CLIP's parameters, and fills those it does not recognise with random numbers
    without a word: everything then runs, and no prompt means anything.

    Raises:
        InputError: it does not.
    """
    (own,) = (p for name, p in model.named_parameters() if name.endswith("position_embedding.weight"))
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored = [file.get_tensor(key) for key in file.keys() if key.endswith("position_embedding.weight")]  # noqa: SIM118
        if any(tensor.shape == own.shape and torch.equal(tensor.to(own), own) for tensor in stored):
            return
    raise InputError(
        f"the text encoder in {folder} was saved in a form this version of transformers does not read",
        "use the transformers version that saved it, or a newer one",
    )
