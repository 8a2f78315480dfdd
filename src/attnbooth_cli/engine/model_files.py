"""Pipelines and judges as files: which files one needs, whether a folder is whole, and what is cached of the hub.

Only JSON, tokenizer text and `.safetensors` count as files of a model; pickles count as missing. No network, ever.
Must import neither torch, diffusers nor transformers, and `huggingface_hub` only inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from attnbooth_cli.errors import InputError

# Component -> stem of its weight files, as diffusers and transformers name them. What else a repository holds
# (safety checker, feature extractor, image encoder, single-file checkpoints) the method has no use for.
WEIGHTED = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
CONFIGS = {
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
}
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Weights:
    """The weight files of one component: whole, and never pickles.

    Attributes:
        files: Names inside the component's folder, an index included.
        variant: "fp16" when there are half-precision weights only, else None; `from_pretrained` must be told.
    """

    files: tuple[str, ...]
    variant: str | None = None


def pick_weights(stem: str, names: Iterable[str]) -> Weights | None:
    """Which of the files `names` to load: full precision before fp16, one file before shards; None if none is whole."""
    present = set(names)
    for variant in (None, "fp16"):
        mark = f".{variant}" if variant else ""
        single = f"{stem}{mark}.safetensors"
        if single in present:
            return Weights((single,), variant)
        # diffusers and transformers have written the variant on either side of the shard number.
        indices = {f"{stem}.safetensors.index{mark}.json", f"{stem}{mark}.safetensors.index.json"} & present
        shard = re.compile(
            rf"{re.escape(stem)}(?:{re.escape(mark)}-\d{{5}}-of-(\d{{5}})|-\d{{5}}-of-(\d{{5}}){re.escape(mark)})"
            r"\.safetensors"
        )
        shards = [(name, match) for name in sorted(present) if (match := shard.fullmatch(name))]
        if indices and shards and len(shards) == int(shards[0][1].group(1) or shards[0][1].group(2)):
            return Weights((*sorted(indices), *(name for name, _ in shards)), variant)
    return None


def is_commit(revision: str | None) -> TypeGuard[str]:
    """Whether `revision` is a full commit hash, which always means the same files."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Where the hub library keeps its downloads (HF_HOME, HF_HUB_CACHE)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def has_configs(folder: Path) -> bool:
    """Whether `folder` holds every text file a pipeline needs."""
    tokenizer = folder / "tokenizer"
    return (
        (folder / "model_index.json").is_file()
        and all((folder / part / name).is_file() for part, name in CONFIGS.items())
        and ((tokenizer / "tokenizer.json").is_file() or (tokenizer / "vocab.json").is_file())
    )


def weights_in(folder: Path) -> dict[str, Weights | None]:
    """The weights of each component of a pipeline on disk, None where there are none to load."""
    return {part: pick_weights(stem, names_in(folder / part)) for part, stem in WEIGHTED.items()}


def is_whole_pipeline(folder: Path) -> bool:
    """Whether `folder` holds all files a pipeline is loaded from."""
    return has_configs(folder) and None not in weights_in(folder).values()


@dataclass(frozen=True)
class JudgeKind:
    """A kind of model that `eval` judges with.

    Attributes:
        model_type: As transformers names it in `config.json`.
        option: The flag that names one.
        reads_text: Whether it needs a tokenizer.
        example: The one most papers use.
    """

    name: str
    model_type: str
    option: str
    reads_text: bool
    example: str

    def is_whole(self, folder: Path) -> bool:
        """Whether `folder` holds all files such a model is loaded from."""
        names = set(names_in(folder))
        return (
            {"config.json", "preprocessor_config.json"} <= names
            and (not self.reads_text or bool({"tokenizer.json", "vocab.json"} & names))
            and pick_weights("model", names) is not None
        )


CLIP = JudgeKind("CLIP", "clip", "--clip", True, "openai/clip-vit-base-patch32")
DINO = JudgeKind("DINO", "vit", "--dino", False, "facebook/dino-vits16")


def cached(repo_id: str, revision: str | None = None, whole: Callable[[Path], bool] = is_whole_pipeline) -> Path | None:
    """The cached snapshot of a model, without any network.

    Args:
        repo_id: `owner/name`.
        revision: A commit (seven digits suffice), branch or tag; None takes what `main` was when last asked for, else
            the newest whole snapshot.
        whole: Whether a snapshot has all that is needed; others are passed over.

    Raises:
        InputError: `revision` cannot be one.
    """
    require_revision(revision)
    store = cache_folder() / f"models--{repo_id.replace('/', '--')}"
    snapshots = store / "snapshots"
    if not snapshots.is_dir():
        return None
    names = [revision] if is_commit(revision) else []
    reference = store / "refs" / (revision or "main")
    if reference.is_file():
        names.append(reference.read_text(encoding="utf-8").strip())
    if revision is None or _SHORT_COMMIT.fullmatch(revision):
        newest = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        names += [path.name for path in newest if path.name.startswith(revision or "")]
    return next((snapshots / name for name in names if name and whole(snapshots / name)), None)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, none where there is no folder."""
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def require_revision(revision: str | None) -> None:
    """Refuses what cannot be a commit, branch or tag, before it becomes part of a path or a URL.

    Raises:
        InputError: it cannot.
    """
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(
            f"{revision!r} is not a revision of a hub model", "give a commit hash, a branch or a tag, or none for main"
        )
