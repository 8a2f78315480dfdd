"""A run's plan: one frozen record of everything that decides it, every value resolved and its origin known.

Made by `layers.build_plan`, kept in the run's folder, read from there by whoever goes on with the run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from attnbooth_cli.engine.methods import METHODS, STAGE_NAMES, MemoryName, OptimizerName, Stage, StageName
from attnbooth_cli.errors import DamagedError, InputError
from attnbooth_cli.project.manifest import MOST_VECTORS, check_category, check_token, train_table

STAGE_KEYS = (
    "enabled", "steps", "learning_rate", "batch_size", "mean_weight", "variance_weight", "prior_weight", "adapter_size",
    "snr_gamma", "context_weight", "context_attention_weight", "embedding_rate",
)  # fmt: skip
PLAIN_KEYS = (
    "method", "schedule", "prompt", "seed", "resolution", "device", "precision", "save_precision", "checkpoint_every",
    "sample_every", "snapshot_every", "micro_batch_size", "gradient_checkpointing", "regulariser", "augmentation",
    "augmentation_pool", "prior_pictures", "deterministic", "memory", "optimizer",
)  # fmt: skip
NOT_IDENTITY = {
    "schedule", "device", "checkpoint_every", "sample_every", "snapshot_every", "micro_batch_size",
    "gradient_checkpointing", "deterministic", "memory",
}  # fmt: skip

ADAPTER = "train.unet.adapter"


@dataclass(frozen=True)
class Concept:
    """What is learned: `token` is [V], `category` the super-category C, `vectors` the number of embedding rows."""

    name: str
    category: str
    token: str
    vectors: int


@dataclass(frozen=True)
class Base:
    """Which base model: reference as declared, pinned revision, SHA-256 of the U-Net's weights."""

    model: str
    revision: str | None
    sha256: str
    prediction_type: str


@dataclass(frozen=True)
class PictureFile:
    """A training picture: its name inside the images folder and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Plan:
    """Everything that determines a run.

    Attributes:
        prompts: Training prompts; one is drawn for each sample where there are several.
        with_category: Whether `{}` means `[V] C` or [V] alone.
        initial: The word whose first piece [V] starts from.
        origins: Where each setting's value came from.
    """

    concept: Concept
    base: Base
    pictures: tuple[PictureFile, ...]
    method: str
    schedule: Literal["recommended", "paper"]
    prompts: tuple[str, ...]
    with_category: bool
    initial: str
    stages: tuple[Stage, ...]
    seed: int
    resolution: int
    device: str
    precision: Literal["auto", "float32", "bf16", "fp16"]
    save_precision: Literal["float16", "float32"]
    checkpoint_every: int
    sample_every: int
    snapshot_every: int
    micro_batch_size: int
    gradient_checkpointing: bool
    regulariser: bool
    augmentation: Literal["published", "upright", "stretched", "squeezed", "cropped", "none"]
    augmentation_pool: int
    prior_pictures: int
    smoke: bool
    origins: dict[str, str]
    deterministic: bool = False  # older plans do not say this, nor what follows
    memory: MemoryName = "auto"
    optimizer: OptimizerName = "adamw"

    def stages_until(self, until: StageName | None) -> tuple[Stage, ...]:
        """The enabled stages up to and including `until` (all of them for None).

        Raises:
            InputError: there are none.
        """
        last = STAGE_NAMES.index(until) if until else len(STAGE_NAMES)
        stages = tuple(stage for stage in self.stages if stage.enabled and STAGE_NAMES.index(stage.name) <= last)
        if not stages:
            enabled = ", ".join(stage.name for stage in self.stages if stage.enabled)
            raise InputError(f"nothing is trained until stage {until}: this run has {enabled}", "leave --until out")
        return stages

    @property
    def identity(self) -> dict[str, Any]:
        """The values that decide what is learned, flat; two plans that agree on them make the same concept."""
        document = json.loads(plan_json(self))
        document["stages"] = {stage.pop("name"): stage for stage in document["stages"]}
        for key in (*NOT_IDENTITY, "origins"):
            del document[key]
        if self.optimizer == Plan.optimizer:
            del document["optimizer"]  # older versions, whose runs go on, had no other
        return flat(document)

    @property
    def digest(self) -> str:
        """SHA-256 over `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def plan_json(plan: Plan) -> str:
    """The plan as one JSON object."""
    return json.dumps(dataclasses.asdict(plan), ensure_ascii=False)


def plan_from_json(text: str, where: str) -> Plan:
    """The inverse of `plan_json`.

    Raises:
        DamagedError: `text` is not a plan; `where` names its file.
    """
    again = "start again with: attnbooth train --restart"
    try:
        plan = TypeAdapter(Plan).validate_json(text)
    except ValidationError as error:
        raise DamagedError(
            f"{where} is damaged ({error.error_count()} problems, the first: {error.errors()[0]['msg']})",
            again,
        ) from None
    wrong = _impossible(plan)
    if wrong:
        raise DamagedError(f"{where} is damaged ({wrong})", again)
    return plan


def _impossible(plan: Plan) -> str | None:
    """What no plan of ours can say although its types are right, else None."""
    if plan.method not in METHODS:
        return f"there is no method {plan.method!r}"
    if any(Path(picture.name).name != picture.name or "\\" in picture.name for picture in plan.pictures):
        return "a picture's name is a path"
    if not plan.pictures:
        return "it has no pictures"
    if not _of_method(plan):
        return f"its stages are not those of {plan.method}"
    if not plan.prompts or any(prompt.count("{}") != 1 for prompt in plan.prompts):
        return "a prompt does not name the concept once"
    settings = {key: getattr(plan, key) for key in PLAIN_KEYS if key != "prompt"}
    of_stages = {str(its.name): {key: getattr(its, key) for key in STAGE_KEYS} for its in plan.stages}
    try:
        check_token(plan.concept.token)
        check_category(plan.concept.category)
        train_table({**settings, **of_stages}, "a setting cannot be")
    except InputError as error:
        return error.message
    except ValueError as error:
        return str(error)
    return None if 1 <= plan.concept.vectors <= MOST_VECTORS else "its number of vectors cannot be"


def _of_method(plan: Plan) -> bool:
    """Whether the stages are those of the method; LoRA may stand in for the whole U-Net."""
    own = METHODS[plan.method].stages
    return [stage.name for stage in plan.stages] == [stage.name for stage in own] and all(
        stage.adapter == its.adapter or (stage.name, its.adapter, stage.adapter) == ("unet", None, "lora")
        for stage, its in zip(plan.stages, own, strict=True)
    )


def settings_of(plan: Plan) -> dict[str, tuple[Any, str]]:
    """Every setting of the plan with its origin, by key, in reading order: what `--dry-run` prints."""
    document = dataclasses.asdict(plan)
    table = {"train.prompt": plan.prompts[0] if len(plan.prompts) == 1 else f"one of {len(plan.prompts)}"}
    table |= {f"train.{key}": document[key] for key in document if f"train.{key}" in plan.origins}
    for stage in plan.stages:
        table |= {f"train.{stage.name}.{key}": getattr(stage, key) for key in STAGE_KEYS}
        if stage.name == "unet":
            table[ADAPTER] = stage.adapter or "none"
    return {key: (value, plan.origins.get(key, f"method {plan.method}")) for key, value in table.items()}


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables inside tables as one: `{"unet": {"steps": 3}}` -> `{"unet.steps": 3}`."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
