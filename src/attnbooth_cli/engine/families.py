"""Base-model families: how to load one, encode a prompt for it, and sample from it.

A family is an entry in `FAMILIES`. The training loop knows `Components` and a "conditioning" (the U-Net's keyword
arguments); text encoders are a tuple, so that a family with two of them is one more entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from attnbooth_cli.engine import libraries  # noqa: F401
from attnbooth_cli.engine.adapters import detach
from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.offload import at_hand
from attnbooth_cli.engine.pipeline_folder import Parts, load_parts
from attnbooth_cli.errors import DamagedError, InputError

Conditioning = dict[str, Tensor]
"""What the U-Net is told of the prompt: keyword arguments of its forward pass, each with a leading batch dimension."""


@dataclass
class TextEncoder:
    """A tokenizer and the model that reads its ids."""

    tokenizer: Any
    model: Any


@dataclass
class Components:
    """A base model taken apart. Weights are float32; `noise_scheduler` is the training schedule (DDPM).

    Attributes:
        prompting: What tells the U-Net of [V] where that is more than an embedding (`prompting`), else None.
    """

    family: str
    text_encoders: tuple[TextEncoder, ...]
    vae: Any
    unet: Any
    noise_scheduler: Any
    prompting: Any = None

    def to(self, device: torch.device) -> Components:
        """Moves every model to `device`, in place."""
        for model in (self.unet, self.vae, *(encoder.model for encoder in self.text_encoders)):
            model.to(device)
        if self.prompting is not None:
            self.prompting.module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        device: torch.device = self.unet.device
        return device

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels one latent position stands for, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


@dataclass(frozen=True)
class Family:
    """What the engine needs to know of a family.

    Attributes:
        load: Reads a base model from disk into float32 components on the CPU.
        encode: Prompts (already with [V] spelt out) to conditioning, wherever the text encoder waits.
        pipeline: diffusers' own pipeline around the components with a given sampler.
    """

    name: str
    load: Callable[[BaseModel], Components]
    encode: Callable[[Components, Sequence[str]], Conditioning]
    pipeline: Callable[[Components, Any], Any]


def load_components(base: BaseModel) -> Components:
    """Loads a base model of any registered family.

    Raises:
        DamagedError: its files cannot be read as weights.
        InputError: a part has the wrong shape.
    """
    try:
        return FAMILIES[base.family].load(base)
    except (OSError, SafetensorError) as error:
        raise DamagedError(
            f"the base model {base.ref} cannot be read: {_first_line(error)}",
            "download it again, or name another with --model",
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the base model {base.ref} does not fit together: {_first_line(error)}", "name another with --model"
        ) from error


def load_tokenizer(base: BaseModel) -> Any:
    """The base model's first tokenizer alone: enough to check a category and a token."""
    from transformers import CLIPTokenizer

    folder = base.config if base.kind == "file" else base.path
    try:
        return CLIPTokenizer.from_pretrained(str(Path(folder or base.path) / "tokenizer"), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"the tokenizer of {base.ref} cannot be read: {_first_line(error)}", "name another model with --model"
        ) from error


def _load_stable_diffusion(base: BaseModel) -> Components:
    from diffusers import DDPMScheduler

    if base.kind == "file":
        tokenizer, parts = _load_single_file(base)
    else:
        tokenizer, parts = load_tokenizer(base), load_parts(base.path, base.variant)
    for model in (parts.unet, parts.vae, parts.text_encoder):
        model.requires_grad_(False).eval()
    return Components(
        family=base.family,
        text_encoders=(TextEncoder(tokenizer, parts.text_encoder),),
        vae=parts.vae,
        unet=parts.unet,
        noise_scheduler=DDPMScheduler.from_config(parts.scheduler.config, prediction_type=base.prediction_type),
    )


def _load_single_file(base: BaseModel) -> tuple[Any, Parts]:
    from diffusers import StableDiffusionPipeline

    absent = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    pipeline = StableDiffusionPipeline.from_single_file(
        str(base.path), config=str(base.config), local_files_only=True, torch_dtype=torch.float32, **absent
    )
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        model.float()
    return pipeline.tokenizer, Parts(pipeline.text_encoder, pipeline.vae, pipeline.unet, pipeline.scheduler)


def _encode_stable_diffusion(components: Components, prompts: Sequence[str]) -> Conditioning:
    from attnbooth_cli.engine.tokens import maximum_length

    (encoder,) = components.text_encoders
    input_ids = encoder.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=maximum_length(encoder.tokenizer, encoder.model),
        truncation=True,
        return_tensors="pt",
    ).input_ids
    with at_hand(components.device, encoder.model):
        hidden_states = encoder.model(input_ids.to(encoder.model.device)).last_hidden_state  # [b, t, d]
    return {"encoder_hidden_states": hidden_states}


def _stable_diffusion_pipeline(components: Components, scheduler: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    (encoder,) = components.text_encoders
    pipeline = StableDiffusionPipeline(
        vae=components.vae,
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        unet=components.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


FAMILIES: dict[str, Family] = {
    "stable-diffusion": Family(
        "stable-diffusion", _load_stable_diffusion, _encode_stable_diffusion, _stable_diffusion_pipeline
    )
}


@dataclass(frozen=True)
class _Table:
    """Of a text encoder's embedding table: how many rows it has, and those no word of its tokenizer uses, [n, d]."""

    rows: int
    spare: Tensor


def _table(encoder: TextEncoder) -> _Table:
    weight = encoder.model.get_input_embeddings().weight.detach()
    return _Table(len(weight), weight[len(encoder.tokenizer) :].cpu().clone())


@dataclass
class ComponentPool:
    """Loads base models; with `keep`, once for several projects, giving each the pristine weights again.

    Keeping costs a second copy of the U-Net in memory; of the text encoder, which stays frozen, one of the rows alone
    that its embedding table has beyond its tokenizer's words, where [V] is written.
    """

    keep: bool = False
    _loaded: dict[tuple[str, str | None], tuple[Components, dict[str, Tensor], list[_Table]]] = field(
        default_factory=dict
    )

    def take(self, base: BaseModel) -> Components:
        """Untouched components of `base`, on whatever device they were left on.

        Raises:
            DamagedError, InputError: as `load_components`.
        """
        key = (str(base.path), base.revision)
        if key in self._loaded and self._loaded[key][0].vae.dtype != torch.float32:
            del self._loaded[key]  # pictures were made in half precision, and what that has rounded is lost
        if key not in self._loaded:
            components = load_components(base)
            if self.keep:
                pristine = {name: tensor.clone() for name, tensor in components.unet.state_dict().items()}
                self._loaded[key] = (components, pristine, [_table(encoder) for encoder in components.text_encoders])
            return components
        components, pristine, tables = self._loaded[key]
        components.prompting = None
        detach(components.unet)  # a run that failed in the middle of its last stage has left its adapter there
        components.unet.load_state_dict(pristine)
        for encoder, table in zip(components.text_encoders, tables, strict=True):
            encoder.tokenizer = load_tokenizer(base)
            encoder.model.resize_token_embeddings(table.rows, mean_resizing=False)
            with torch.no_grad():
                encoder.model.get_input_embeddings().weight[table.rows - len(table.spare) :] = table.spare
        return components
