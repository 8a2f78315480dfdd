"""From what was asked to one frozen plan: settings from many places, the strongest of each kept with its origin.

Layers, weakest first: our defaults, the base model's entry, the method's entry, presets, the user's config file,
the manifest, `ATTNBOOTH_*` variables, flags and `--set`. Imports neither torch nor diffusers, so that `--dry-run` and
argument errors are immediate.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel as PydanticModel

from attnbooth_cli.engine.catalogue import Entry
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH, MEMORY, METHODS, STAGE_NAMES, MemoryName, Method, Stage
from attnbooth_cli.engine.plan import ADAPTER, PLAIN_KEYS, STAGE_KEYS, Base, Concept, PictureFile, Plan, flat
from attnbooth_cli.errors import InputError
from attnbooth_cli.project.manifest import Manifest, TrainTable, UserConfig, train_table

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

MANIFEST = "attnbooth.toml"
ENVIRONMENT = "environment"
SPOKEN = ("command line", "--set")
"""Origins that are said with a command, not written down somewhere."""
SMOKE = "--smoke"
NO_REGULARISER = "train.regulariser = false"

SMOKE_STEPS = 2
SMOKE_BATCH_SIZE = 2


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
        *([Layer("user config", settings_in(user_config.train))] if user_config else []),
        Layer(MANIFEST, settings_in(manifest.train)),
        _environment_layer(environment or {}),
        _flags_layer(flags or {}),
        _assignments_layer(assignments),
    ]
    method = _method(_last(above, "train.method") or DEFAULTS["train.method"])
    paper = (_last(above, "train.schedule") or DEFAULTS["train.schedule"]) == "paper"
    factors = {} if paper else entry.rate_factors.get(method.family, {})
    preset = _preset_layer(method, "fast", "--fast", factors, entry.name) if fast else Layer("--fast", {})
    asked_adapter = _last(above, ADAPTER) or "lora"
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
            values[key], origins[key] = 0.0, NO_REGULARISER
    stages = tuple(_stage(stage, values) for stage in method.stages)
    _require_consistent(method, stages, manifest.concept.vectors)
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
        **{key: values[f"train.{key}"] for key in PLAIN_KEYS if key != "prompt"},
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


def _stage(stage: Stage, values: Mapping[str, Any]) -> Stage:
    chosen = {key: values[f"train.{stage.name}.{key}"] for key in STAGE_KEYS}
    if stage.name == "unet":
        chosen["adapter"] = None if values[ADAPTER] == "none" else values[ADAPTER]
    return dataclasses.replace(stage, **chosen)


def _require_consistent(chosen: Method, stages: Sequence[Stage], vectors: int) -> None:
    """Refuses what a stage does not do, where it would otherwise be ignored or go wrong."""
    method = chosen.name
    enabled = [stage for stage in stages if stage.enabled]
    for stage in enabled:
        prompting = stage.adapter is not None and not stage.adapts_unet
        if prompting and len(enabled) > 1:
            others = ", ".join(its.name for its in enabled if its is not stage)
            raise InputError(f"{method} trains nothing but its own layers", f"disable stage {others}")
        if stage.regularised and (prompting or not chosen.with_category):
            why = "" if prompting else ": it compares [V] with the category's word, which no prompt has here"
            raise InputError(
                f"the attention regulariser is not for {method}{why}",
                f"leave train.{stage.name}.mean_weight and so on out",
            )
        if stage.adapter == "mapper" and vectors > 1:
            raise InputError(
                f"{method} makes one vector for [V], and this concept has {vectors}",
                "set [concept] vectors = 1 in attnbooth.toml, or choose another method",
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
        values |= {f"train.{stage.name}.{key}": getattr(stage, key) for key in STAGE_KEYS}
        if stage.name == "unet":
            values[ADAPTER] = stage.adapter or "none"
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
    return Layer(SMOKE, {**stages, "train.prior_pictures": SMOKE_BATCH_SIZE})


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
    return Layer(ENVIRONMENT, values)


def _flags_layer(flags: Mapping[str, Any]) -> Layer:
    given = {key: value for key, value in flags.items() if value is not None}
    values: dict[str, Any] = {}
    for key, value in given.items():
        values |= _checked({key: value}, "--" + key.removeprefix("train.").replace("_", "-"))
    return Layer(SPOKEN[0], values)


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
    return Layer(SPOKEN[1], values)


def settings_in(table: TrainTable) -> dict[str, Any]:
    """The settings that a `[train]` table names, flat, such as `train.unet.steps`."""
    return {f"train.{key}": value for key, value in flat(table.model_dump(exclude_none=True)).items()}


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
    return settings_in(train_table(nested, origin))


def _merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            values[key], origins[key] = value, layer.origin
    return values, origins


def _last(layers: Sequence[Layer], key: str) -> Any:
    return next((layer.values[key] for layer in reversed(layers) if key in layer.values), None)
