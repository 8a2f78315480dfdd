"""From what was asked to one frozen plan with every value resolved and its origin known.

Layers, weakest first: our defaults, the base model's entry, the method's entry, presets, the user's config file,
the manifest, `ATTNBOOTH_*` variables, flags and `--set`. Imports neither torch nor diffusers, so that `--dry-run` and
argument errors are immediate.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel as PydanticModel
from pydantic import TypeAdapter, ValidationError

from attnbooth_cli.engine.catalogue import Entry
from attnbooth_cli.engine.methods import (
    ATTNDREAMBOOTH,
    MEMORY,
    METHODS,
    STAGE_NAMES,
    MemoryName,
    Method,
    OptimizerName,
    Stage,
    StageName,
)
from attnbooth_cli.errors import DamagedError, InputError
from attnbooth_cli.project.manifest import (
    MOST_VECTORS,
    Manifest,
    TrainTable,
    UserConfig,
    check_category,
    check_token,
    train_table,
)

DEFAULTS: dict[str, Any] = {
    "train.method": ATTNDREAMBOOTH.name,
    "train.schedule": "recommended",  # with what the base model's entry adapts; "paper": without
    "train.seed": 0,
    "train.resolution": 512,  # reference script: Stable Diffusion 2.1-base at 512 pixels
    "train.device": "auto",
    "train.precision": "auto",  # float32 on CPU and MPS, else bf16, else fp16 with a gradient scaler
    "train.save_precision": "float16",  # of concept/unet; checkpoints are always float32
    "train.checkpoint_every": 50,
    "train.sample_every": 0,  # 0: only at the end of each stage
    "train.snapshot_every": 0,  # 0: none; the end of each stage is kept in any case
    "train.memory": "auto",  # as "high", but in smaller micro-batches on a CPU whose memory whole ones would not fit
    "train.optimizer": "adamw",
    "train.micro_batch_size": 0,  # 0: the whole batch at once
    "train.gradient_checkpointing": False,
    "train.deterministic": False,  # on GPUs it costs time and memory
    "train.regulariser": True,
    "train.augmentation": "published",  # the reference's dataset class
    "train.augmentation_pool": 0,  # 0: a fresh augmentation for every draw
    "train.prior_pictures": 200,  # of the class, where a stage has a prior weight (diffusers' dreambooth/README.md)
}
_STAGE_KEYS = (
    "enabled", "steps", "learning_rate", "batch_size", "mean_weight", "variance_weight", "prior_weight", "adapter_size",
    "snr_gamma", "context_weight", "context_attention_weight", "embedding_rate",
)  # fmt: skip
_PLAIN_KEYS = (
    "method", "schedule", "prompt", "seed", "resolution", "device", "precision", "save_precision", "checkpoint_every",
    "sample_every", "snapshot_every", "micro_batch_size", "gradient_checkpointing", "regulariser", "augmentation",
    "augmentation_pool", "prior_pictures", "deterministic", "memory", "optimizer",
)  # fmt: skip
_NOT_IDENTITY = {
    "schedule", "device", "checkpoint_every", "sample_every", "snapshot_every", "micro_batch_size",
    "gradient_checkpointing", "deterministic", "memory",
}  # fmt: skip

_SPOKEN = ("command line", "--set")
"""Origins that are said with a command, not written down somewhere."""
_ADAPTER = "train.unet.adapter"

SMOKE_STEPS = 2
SMOKE_BATCH_SIZE = 2
SMOKE_SAMPLING_STEPS = 4


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
    augmentation: Literal["published", "upright", "stretched", "cropped", "none"]
    augmentation_pool: int
    prior_pictures: int
    smoke: bool
    origins: dict[str, str]
    deterministic: bool = False  # older plans do not say this, nor what follows
    memory: MemoryName = "auto"
    optimizer: OptimizerName = "adamw"

    def stages_until(self, until: StageName | None) -> tuple[Stage, ...]:
        """The enabled stages up to and including `until` (all of them for None)."""
        last = STAGE_NAMES.index(until) if until else len(STAGE_NAMES)
        return tuple(stage for stage in self.stages if stage.enabled and STAGE_NAMES.index(stage.name) <= last)

    @property
    def identity(self) -> dict[str, Any]:
        """The values that decide what is learned, flat; two plans that agree on them make the same concept."""
        document = json.loads(plan_json(self))
        document["stages"] = {stage.pop("name"): stage for stage in document["stages"]}
        for key in (*_NOT_IDENTITY, "origins"):
            del document[key]
        if document["optimizer"] == DEFAULTS["train.optimizer"]:
            del document["optimizer"]  # older versions, whose runs go on, had no other
        return _flatten(document)

    @property
    def digest(self) -> str:
        """SHA-256 over `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Layer:
    """Settings from one place: flat keys such as `train.unet.steps`."""

    origin: str
    values: Mapping[str, Any]


def build_plan(
    manifest: Manifest,
    *,
    base: Base,
    entry: Entry,
    resolution: int,
    pictures: Sequence[PictureFile],
    user_config: UserConfig | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    fast: bool = False,
    smoke: bool = False,
) -> tuple[Plan, tuple[str, ...]]:
    """Resolves every setting.

    Args:
        entry: The base model's entry, for what it recommends.
        resolution: Pixels a side the base model was made for.
        flags: Values given by command-line flags, by setting key; None values count as not given.
        assignments: `--set` arguments, `KEY=VALUE` with VALUE in TOML or bare text.
        fast: Apply the method's `fast` preset.
        smoke: Two steps a stage with two pictures each, over everything else.

    Returns:
        The plan and warnings (a manifest that overrides a named preset).

    Raises:
        InputError: an unknown key, a wrong value, an unknown method, or no stage left to train.
    """
    above = [
        *([Layer("user config", _table_values(user_config.train))] if user_config else []),
        Layer("attnbooth.toml", _table_values(manifest.train)),
        _environment_layer(environment or {}),
        _flags_layer(flags or {}),
        _assignments_layer(assignments),
    ]
    method = _method(_last(above, "train.method") or DEFAULTS["train.method"])
    paper = (_last(above, "train.schedule") or DEFAULTS["train.schedule"]) == "paper"
    factors = {} if paper else entry.rate_factors.get(method.family, {})
    preset = _preset_layer(method, "fast", "--fast", factors, entry.name) if fast else Layer("--fast", {})
    asked_adapter = _last(above, _ADAPTER) or "lora"
    memory = _memory_layer(method, _last(above, "train.memory") or DEFAULTS["train.memory"], factors, asked_adapter)
    recommended = {} if paper else {**entry.settings, **_rates(method, factors)}
    base_layer = Layer(f"base model {entry.name}", {"train.resolution": resolution, **recommended})
    own = Layer(f"method {method.name}", method.settings)
    layers = [Layer("default", DEFAULTS), _method_layer(method), base_layer, own, preset, memory, *above]
    if smoke:
        layers.append(_smoke_layer())
    values, origins = _merge(layers)
    warnings = tuple(
        f"{key} = {values[key]} ({origins[key]}) overrides {layer.origin} ({layer.values[key]})"
        for layer in (preset, memory)
        for key in layer.values
        if origins[key] not in (preset.origin, memory.origin) and not smoke
    )
    if not values["train.regulariser"]:
        for key in (f"train.{name}.{weight}" for name in STAGE_NAMES for weight in ("mean_weight", "variance_weight")):
            values[key], origins[key] = 0.0, "train.regulariser = false"
    stages = tuple(_stage(stage, values) for stage in method.stages)
    _require_consistent(method.name, stages)
    if not any(stage.enabled for stage in stages):
        raise InputError("every stage is disabled: nothing would be trained", "enable one of train.<stage>.enabled")
    concept = manifest.concept
    plan = Plan(
        concept=Concept(concept.name, concept.category, concept.token, concept.vectors),
        base=base,
        pictures=tuple(pictures),
        stages=stages,
        prompts=_prompts(values["train.prompt"], stages),
        with_category=method.with_category,
        initial=entry.rare_token if method.rare_token else concept.category,
        smoke=smoke,
        origins=origins,
        **{key: values[f"train.{key}"] for key in _PLAIN_KEYS if key != "prompt"},
    )
    return plan, warnings


def check_settings(environment: Mapping[str, str], flags: Mapping[str, Any], assignments: Sequence[str]) -> None:
    """Checks what does not come from a file, as `build_plan` does.

    Raises:
        InputError: an unknown key, a wrong value or an unknown method.
    """
    layers = [_environment_layer(environment), _flags_layer(flags), _assignments_layer(assignments)]
    if (method := _last(layers, "train.method")) is not None:
        _method(method)


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
    settings = {key: getattr(plan, key) for key in _PLAIN_KEYS if key != "prompt"}
    of_stages = {str(its.name): {key: getattr(its, key) for key in _STAGE_KEYS} for its in plan.stages}
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
        table |= {f"train.{stage.name}.{key}": getattr(stage, key) for key in _STAGE_KEYS}
        if stage.name == "unet":
            table[_ADAPTER] = stage.adapter or "none"
    return {key: (value, plan.origins.get(key, f"method {plan.method}")) for key, value in table.items()}


def continued(recorded: Plan, asked: Plan) -> Plan:
    """A run's own plan, with what was said anew on the command line and does not decide what is learned."""
    said = {key: f"train.{key}" for key in sorted(_NOT_IDENTITY - {"schedule"})}
    spoken = (*_SPOKEN, *([f"--memory {asked.memory}"] if asked.origins["train.memory"] in _SPOKEN else []))
    changes = {key: getattr(asked, key) for key, name in said.items() if asked.origins[name] in spoken}
    origins = {name: asked.origins[name] for key, name in said.items() if key in changes}
    return dataclasses.replace(recorded, **changes, origins={**recorded.origins, **origins})


def differences(old: Plan, new: Plan) -> tuple[str, ...]:
    """What makes `new` another experiment than `old`, one phrase per setting."""
    before, after = old.identity, new.identity
    keys = dict.fromkeys([*before, *after])
    changed = [key for key in keys if before.get(key) != after.get(key)]
    before, after = ({**{key: DEFAULTS.get(f"train.{key}") for key in keys}, **its} for its in (before, after))
    return tuple(f"{key}: {before[key]} -> {after[key]}" for key in changed)


def _stage(stage: Stage, values: Mapping[str, Any]) -> Stage:
    chosen = {key: values[f"train.{stage.name}.{key}"] for key in _STAGE_KEYS}
    if stage.name == "unet":
        chosen["adapter"] = None if values[_ADAPTER] == "none" else values[_ADAPTER]
    return dataclasses.replace(stage, **chosen)


def _require_consistent(method: str, stages: Sequence[Stage]) -> None:
    """Refuses what a stage does not do, where it would otherwise be ignored or go wrong."""
    enabled = [stage for stage in stages if stage.enabled]
    for stage in enabled:
        prompting = stage.adapter is not None and not stage.adapts_unet
        if prompting and len(enabled) > 1:
            others = ", ".join(its.name for its in enabled if its is not stage)
            raise InputError(f"{method} trains nothing but its own layers", f"disable stage {others}")
        if prompting and stage.regularised:
            raise InputError(
                f"the attention regulariser is not for {method}", f"leave train.{stage.name}.mean_weight and so on out"
            )
        if stage.embedding_rate and stage.adapter != "image-attention":
            raise InputError(
                f"stage {stage.name} of {method} does not train the embedding beside something else",
                f"leave train.{stage.name}.embedding_rate out",
            )
        if stage.contextual and (stage.name != "embedding" or stage.adapter):
            raise InputError(
                f"stage {stage.name} of {method} has no context regularisation",
                "it is for stage embedding where that trains the embedding itself",
            )


def _prompts(said: str | tuple[str, ...], stages: Sequence[Stage]) -> tuple[str, ...]:
    prompts = (said,) if isinstance(said, str) else said
    if len(prompts) > 1 and any(stage.regularised and stage.enabled for stage in stages):
        raise InputError(
            "the attention regulariser needs one training prompt, and this method has several", "--set train.prompt=..."
        )
    return prompts


def _method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}", f"methods: {', '.join(METHODS)}")
    return METHODS[name]


def _method_layer(method: Method) -> Layer:
    prompts = method.prompts[0] if len(method.prompts) == 1 else method.prompts
    values: dict[str, Any] = {"train.method": method.name, "train.prompt": prompts}
    for stage in method.stages:
        values |= {f"train.{stage.name}.{key}": getattr(stage, key) for key in _STAGE_KEYS}
        if stage.name == "unet":
            values[_ADAPTER] = stage.adapter or "none"
    return Layer(f"method {method.name}", values)


def _rates(method: Method, factors: Mapping[str, float]) -> dict[str, float]:
    """The method's learning rates as a base model wants them."""
    return {
        f"train.{stage.name}.learning_rate": _rounded(stage.learning_rate * factors[stage.name])
        for stage in method.stages
        if stage.name in factors
    }


def _rounded(value: float) -> float:
    """2e-5, not 1.9999999999999998e-05."""
    return float(f"{value:.12g}")


def _preset_layer(method: Method, preset: str, flag: str, factors: Mapping[str, float], base: str) -> Layer:
    changes = method.presets.get(preset)
    if changes is None:
        raise InputError(f"method {method.name} has no {preset} preset", f"leave {flag} out")
    values = {
        f"train.{name}.{key}": _rounded(value * factors.get(name, 1)) if key == "learning_rate" else value
        for name, keys in changes.items()
        for key, value in keys.items()
    }
    return Layer(f"{flag}, rates for {base}" if factors else flag, values)


def _memory_layer(method: Method, name: MemoryName, factors: Mapping[str, float], adapter: str) -> Layer:
    """What a memory preset changes: LoRA only where the method would train the whole U-Net.

    Args:
        adapter: What stronger layers want in its place; the preset's rate is for LoRA alone.
    """
    preset = MEMORY[name]
    values = {f"train.{key}": value for key, value in preset.settings.items()}
    (unet,) = (stage for stage in method.stages if stage.name == "unet")
    if unet.enabled and unet.adapter is None:
        values |= {
            f"train.unet.{key}": _rounded(value * factors.get("unet", 1)) if key == "learning_rate" else value
            for key, value in preset.unet.items()
            if key == "adapter" or adapter == "lora"
        }
    return Layer(f"--memory {name}", values)


def _smoke_layer() -> Layer:
    changes = {"steps": SMOKE_STEPS, "batch_size": SMOKE_BATCH_SIZE}
    stages = {f"train.{name}.{key}": value for name in STAGE_NAMES for key, value in changes.items()}
    return Layer("--smoke", {**stages, "train.prior_pictures": SMOKE_BATCH_SIZE})


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    names = {setting_variable(key): key for key in setting_keys()}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith("ATTNBOOTH_TRAIN_"):
            continue
        if variable not in names:
            near = difflib.get_close_matches(variable, names, n=1)
            raise InputError(
                f"unknown environment variable {variable}", f"did you mean {near[0]}?" if near else "unset it"
            )
        values |= _checked({names[variable]: _parse(text)}, variable)
    return Layer("environment", values)


def _flags_layer(flags: Mapping[str, Any]) -> Layer:
    given = {key: value for key, value in flags.items() if value is not None}
    values: dict[str, Any] = {}
    for key, value in given.items():
        values |= _checked({key: value}, "--" + key.removeprefix("train.").replace("_", "-"))
    return Layer(_SPOKEN[0], values)


def _assignments_layer(assignments: Sequence[str]) -> Layer:
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"--set {assignment}: expected KEY=VALUE", "for example --set train.unet.steps=300")
        if key not in setting_keys():
            near = difflib.get_close_matches(key, setting_keys(), n=1)
            raise InputError(
                f"--set: unknown setting {key!r}",
                f"did you mean {near[0]}?" if near else "attnbooth train --dry-run lists every setting",
            )
        values |= _checked({key: _parse(text.strip())}, f"--set {assignment}")
    return Layer(_SPOKEN[1], values)


def setting_keys() -> tuple[str, ...]:
    """Every key `--set` accepts."""
    return tuple(_leaf_keys(TrainTable, "train"))


def setting_variable(key: str) -> str:
    """The environment variable of a setting: `train.unet.steps` -> `ATTNBOOTH_TRAIN_UNET_STEPS`."""
    return "ATTNBOOTH_" + key.replace(".", "_").upper()


def _leaf_keys(table: type[PydanticModel], prefix: str) -> Iterable[str]:
    for name, field in table.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, PydanticModel):
            yield from _leaf_keys(field.annotation, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Validates flat `values` by the manifest's own rules and returns them as the rules read them."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *tables, leaf = key.split(".")[1:]
        place = nested
        for name in tables:
            place = place.setdefault(name, {})
        place[leaf] = value
    return _table_values(train_table(nested, origin))


def _table_values(table: TrainTable) -> dict[str, Any]:
    return {f"train.{key}": value for key, value in _flatten(table.model_dump(exclude_none=True)).items()}


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            values[key], origins[key] = value, layer.origin
    return values, origins


def _last(layers: Sequence[Layer], key: str) -> Any:
    return next((layer.values[key] for layer in reversed(layers) if key in layer.values), None)
