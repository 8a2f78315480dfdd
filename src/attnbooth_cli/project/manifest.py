"""`attnbooth.toml`: what the person declares about a concept, validated strictly.

Unknown keys and wrong types are errors that name the key, its line and the nearest valid key; all of them are reported
at once. A run never writes this file. Never imports torch.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from attnbooth_cli.errors import InputError
from attnbooth_cli.project.schema import MOST, present, up_to_date

MAX_MANIFEST_BYTES = 1_000_000
MOST_VECTORS = 16
_LONGEST_SHOWN = 200
_MOST_LISTED = 20

Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StageTable(_Table):
    """`[train.STAGE]`; every key is optional and overrides the method's value (see `engine.methods.Stage`)."""

    enabled: bool | None = None
    steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)] | None = None
    batch_size: Annotated[int, Field(gt=0, le=4096)] | None = None
    mean_weight: Weight | None = None
    variance_weight: Weight | None = None
    prior_weight: Weight | None = None
    adapter_size: Annotated[int, Field(gt=0, le=1024)] | None = None
    snr_gamma: Weight | None = None
    context_weight: Weight | None = None
    context_attention_weight: Weight | None = None
    embedding_rate: Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)] | None = None


class UnetTable(StageTable):
    """`[train.unet]`: the one stage in which LoRA can stand in for the weights."""

    adapter: Literal["none", "lora"] | None = None


class TrainTable(_Table):
    """`[train]`; every key is optional. Defaults and their sources are in `engine.layers.DEFAULTS`."""

    method: str | None = None
    schedule: Literal["recommended", "paper"] | None = None
    prompt: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    resolution: Annotated[int, Field(ge=16, le=4096, multiple_of=8)] | None = None
    device: str | None = None
    precision: Literal["auto", "float32", "bf16", "fp16"] | None = None
    save_precision: Literal["float16", "float32"] | None = None
    checkpoint_every: Annotated[int, Field(ge=0)] | None = None
    sample_every: Annotated[int, Field(ge=0)] | None = None
    snapshot_every: Annotated[int, Field(ge=0)] | None = None
    memory: Literal["auto", "high", "24gb", "16gb", "8gb"] | None = None
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] | None = None
    micro_batch_size: Annotated[int, Field(ge=0)] | None = None
    gradient_checkpointing: bool | None = None
    deterministic: bool | None = None
    regulariser: bool | None = None
    augmentation: Literal["published", "upright", "stretched", "squeezed", "cropped", "none"] | None = None
    augmentation_pool: Annotated[int, Field(ge=0, le=100_000)] | None = None
    prior_pictures: Annotated[int, Field(gt=0, le=100_000)] | None = None
    embedding: StageTable = StageTable()
    attention: StageTable = StageTable()
    unet: UnetTable = UnetTable()

    @field_validator("prompt")
    @classmethod
    def _prompt_names_the_concept(cls, prompt: str | None) -> str | None:
        if prompt is not None and prompt.count("{}") != 1:
            raise ValueError("must contain {} exactly once, where the concept goes")
        return prompt


class ConceptTable(_Table):
    """`[concept]`."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    category: Annotated[str, Field(min_length=1, max_length=60)]
    token: Annotated[str, Field(max_length=64)]
    vectors: Annotated[int, Field(ge=1, le=MOST_VECTORS)] = 1
    images: str = "images"

    @field_validator("token")
    @classmethod
    def _token_is_safe(cls, token: str) -> str:
        return check_token(token)

    @field_validator("category")
    @classmethod
    def _category_is_words(cls, category: str) -> str:
        return check_category(category)

    @field_validator("images")
    @classmethod
    def _images_stay_inside(cls, images: str) -> str:
        parts = re.split(r"[/\\]", images)
        if not images or "\0" in images or ".." in parts or images[0] in "/\\~" or ":" in images:
            raise ValueError("must be a folder inside the project, such as images")
        return images


class BaseTable(_Table):
    """`[base]`: the base model's reference; `revision` is pinned by `init` for hub models."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    revision: Annotated[str, Field(pattern=r"^[0-9A-Za-z._/-]{1,200}$")] | None = None


class Manifest(_Table):
    """The whole of `attnbooth.toml`."""

    schema_: Annotated[int, Field(alias="schema", ge=1, le=MOST)]
    concept: ConceptTable
    base: BaseTable
    train: TrainTable = TrainTable()


class UserConfig(_Table):
    """The user's own configuration file: defaults for every project."""

    train: TrainTable = TrainTable()


def check_token(token: str) -> str:
    """Returns `token` if it is safe as a new token: `<...>` without blanks, braces or further angle brackets.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"<[^\s<>{}|\x00-\x1f\x7f]{1,60}>", token):
        raise ValueError(f"must look like <my-cat> (angle brackets, no blanks), not {token!r}")
    return token


def check_category(category: str) -> str:
    """Returns `category` with single blanks if it is plain words.

    Raises:
        ValueError: it is empty or holds anything but letters, digits, blanks and hyphens.
    """
    words = " ".join(category.split())
    if not re.fullmatch(r"[^\W_][\w -]{0,59}", words) or "_" in words:
        raise ValueError(f"must be a noun such as cat or stuffed animal, not {category!r}")
    return words


def read_manifest(path: Path) -> Manifest:
    """Reads and validates a manifest.

    Raises:
        InputError: missing, unreadable, not TOML, of a newer schema, or invalid; the message lists every problem.
    """
    document, text = _read_toml(path, "this is not a concept project; run: attnbooth init")
    with contextlib.suppress(ValueError):  # of no version at all: said below with what else is wrong
        document = up_to_date("manifest", document, path)
    return _validate(Manifest, document, path, text)


def read_user_config(path: Path) -> UserConfig:
    """Reads the user's configuration file; an absent one is empty.

    Raises:
        InputError: as `read_manifest`.
    """
    if not path.exists():
        return UserConfig()
    document, text = _read_toml(path, "")
    return _validate(UserConfig, document, path, text)


def train_table(values: Mapping[str, Any], origin: str) -> TrainTable:
    """Validates settings that came from elsewhere (`--set`, the environment).

    Args:
        values: Nested like the `[train]` table.
        origin: How the user wrote them, for the message.

    Raises:
        InputError: unknown key or wrong value.
    """
    try:
        return TrainTable.model_validate(values)
    except ValidationError as error:
        problems = [_explain(TrainTable, item, "train", None) for item in error.errors()]
        raise InputError(
            f"{origin}: {_listed(problems)}", "attnbooth train PROJECT --dry-run lists every setting"
        ) from None


def manifest_text(
    *,
    name: str,
    category: str,
    token: str,
    model: str,
    revision: str | None,
    resolution: int | None,
    native_resolution: int,
) -> str:
    """The manifest `init` writes: what the person declared, and the optional keys as comments.

    Args:
        resolution: Written only when the person asked for one; otherwise a comment names the native one.
    """
    quote = _toml_string
    revision_line = f"revision = {quote(revision)}\n" if revision else ""
    resolution_line = f"resolution = {resolution}" if resolution else f"# resolution = {native_resolution}"
    return f"""\
# A concept project of attnbooth. This file is yours: no run ever writes it.
schema = {present("manifest")}

[concept]
name = {quote(name)}
category = {quote(category)}
token = {quote(token)}
images = "images"

[base]
model = {quote(model)}
{revision_line}
[train]
{resolution_line}
# seed = 0
# precision = "auto"
# checkpoint_every = 50
# `attnbooth train --dry-run` prints every setting, its value and where it came from.

# [train.embedding]      # likewise [train.attention] and [train.unet]
# enabled = true
# steps = 60
# learning_rate = 1e-3
# batch_size = 8
# mean_weight = 0.1
# variance_weight = 0.0
"""


def _toml_string(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_toml(path: Path, hint: str) -> tuple[dict[str, Any], str]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise InputError(f"{path} is not a file", hint or None)
        if status.st_size > MAX_MANIFEST_BYTES:
            raise InputError(f"{path} is larger than {MAX_MANIFEST_BYTES // 1_000_000} MB", "this is not a manifest")
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", hint or None) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}", "mend the line, or run attnbooth init again") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply", "this is not a manifest") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise InputError(f"{path} is not valid TOML: {error}", "correct the number") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", None) from None


def _validate(model: type[Model], document: dict[str, Any], path: Path, text: str) -> Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = [_explain(model, item, "", text) for item in error.errors()]
        raise InputError(f"{path}: {_listed(problems)}", "correct the manifest and run the command again") from None


def _explain(model: type[BaseModel], item: Any, prefix: str, text: str | None) -> str:
    """One pydantic error as a phrase with key, line and nearest valid key."""
    location = tuple(str(part) for part in item["loc"])
    key = ".".join((*filter(None, [prefix]), *location))
    line = f" (line {number})" if text and (number := _line_of(text, location)) else ""
    match item["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(location[-1], _keys_at(model, location[:-1]), n=1, cutoff=0.5)
            return f"unknown key {key}{line}" + (f", did you mean {near[0]}?" if near else "")
        case "missing":
            return f"{key} is missing"
        case "string_too_long":
            return f"{key}{line} has more than {item['ctx']['max_length']} characters"
        case "value_error":
            return f"{key}{line} {item['ctx']['error']}"
        case _:
            return f"{key}{line}: {item['msg'][0].lower()}{item['msg'][1:]}, not {_shown(item['input'])}"


def _shown(value: object) -> str:
    """A value for a message: the beginning of one that is long, as a stranger's file may hold anything."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _listed(problems: Sequence[str]) -> str:
    """The problems as one phrase: the first few, and how many more there are."""
    more = [f"and {len(problems) - _MOST_LISTED} more"] if len(problems) > _MOST_LISTED else []
    return "; ".join([*problems[:_MOST_LISTED], *more])


def _keys_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _line_of(text: str, location: tuple[str, ...]) -> int | None:
    """The line on which a key (or its table's header) stands; good enough for messages."""
    table: tuple[str, ...] = ()
    header_line = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line):
            table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            if table == location[: len(table)]:
                header_line = number
        elif pair := re.match(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=", line):
            key = tuple(part.strip().strip("\"'") for part in pair[1].split("."))
            if (*table, *key) == location:
                return number
    return header_line
