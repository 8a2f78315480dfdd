"""The model hub: which commit a name means, and exactly the files a pipeline needs, in the hub library's own cache.

Everything goes through `huggingface_hub`, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean here what they
mean everywhere. Only JSON, tokenizer text and `.safetensors` are ever asked for: pickles are not even downloaded.
A file that is in the cache for a commit is never asked for again, and a pinned revision that is cached whole needs no
network at all. Must import neither torch, diffusers nor transformers, and `huggingface_hub` only inside functions.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from attnbooth_cli.errors import BaseModelError, BoothError, InputError, ResourceError
from attnbooth_cli.project import durable

Say = Callable[[str], None]

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
_BIG = 50_000_000
# The hub's own bot, whose pull requests carry a safetensors copy of a repository's pickles; transformers' loader
# trusts the same author (safetensors_conversion.py).
_CONVERSION_BOT = "SFconvertbot"
_RETRY = "run the same command again: files that arrived whole are kept"
_ELSEWHERE = "or choose another base model with `--model REF` (a local folder, a .safetensors file, a hub id or `tiny`)"


class NotOnHubError(BaseModelError):
    """The hub has no such model, or none this user may know of."""


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
    return {part: pick_weights(stem, _names(folder / part)) for part, stem in WEIGHTED.items()}


def is_whole_pipeline(folder: Path) -> bool:
    """Whether `folder` holds all files a pipeline is loaded from."""
    return has_configs(folder) and None not in weights_in(folder).values()


def is_whole_judge(folder: Path) -> bool:
    """Whether `folder` holds all files a CLIP model is loaded from."""
    names = set(_names(folder))
    return (
        {"config.json", "preprocessor_config.json"} <= names
        and bool({"tokenizer.json", "vocab.json"} & names)
        and pick_weights("model", names) is not None
    )


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
    _require_revision(revision)
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


def pin(repo_id: str, revision: str | None = None) -> str:
    """The commit hash a branch, a tag or nothing (`main`) means now.

    Raises:
        BaseModelError: no such model or revision, no right to read it, or no way to ask.
    """
    return _listing(repo_id, revision)[0]


def fetch(
    repo_id: str,
    revision: str | None,
    say: Say,
    check: Callable[[Path], object] = lambda folder: None,
    *,
    bars: bool = False,
) -> Path:
    """The pipeline `repo_id` on disk, downloaded where it is not cached. The folder's name is the commit.

    Args:
        repo_id: `owner/name`.
        revision: A commit, branch or tag; None is `main`.
        say: Told the size before the weights are downloaded.
        check: Run on the folder when it holds the text files only, so that it can refuse before gigabytes are moved.
        bars: Whether the hub library may draw its progress bars.

    Raises:
        BaseModelError: whatever keeps the files from arriving, or a repository with pickles only.
        InputError: not a diffusers pipeline, or what `check` raises.
        ResourceError: the disk has no room, or the cache cannot be written.
    """
    found = cached(repo_id, revision) if is_commit(revision) else None
    # Half-precision weights alone may be what another tool left there: ask whether the hub has the full ones.
    if found is not None and not any(weights and weights.variant for weights in weights_in(found).values()):
        check(found)
        return found
    commit, sizes = _listing(repo_id, revision)
    texts = _pipeline_texts(repo_id, sizes)
    folder = _download(repo_id, commit, texts, bars=bars)
    check(folder)
    weights: list[str] = []
    for part, stem in WEIGHTED.items():
        names = _names_under(part, sizes)
        picked = pick_weights(stem, names)
        if picked is None:
            raise _no_weights(f"{repo_id} on the hub", f"the {part}", names)
        weights += [f"{part}/{name}" for name in picked.files]
    _announce(repo_id, commit, folder, texts + weights, sizes, say)
    return _download(repo_id, commit, weights, sizes, say, bars=bars)


def fetch_configs(repo_id: str, revision: str | None, say: Say) -> Path:
    """The text files of a pipeline (configurations and tokenizer) without weights, for single-file checkpoints.

    Any cached snapshot will do: configurations of a published model do not change.

    Raises:
        BaseModelError: whatever keeps the files from arriving.
        ResourceError: the cache cannot be written.
    """
    found = cached(repo_id, revision, has_configs)
    if found is not None:
        return found
    commit, sizes = _listing(repo_id, revision)
    texts = _pipeline_texts(repo_id, sizes)
    say(f"downloading the configuration and tokenizer of {repo_id} at {commit[:7]} to {cache_folder()}")
    return _download(repo_id, commit, texts)


def fetch_judge(repo_id: str, revision: str | None, say: Say, *, bars: bool = False) -> Path:
    """A CLIP model on disk, downloaded where it is not cached. The folder's name is the commit.

    Where `main` holds pickles only, the hub's own converted copy (a pull request of its bot) is used, and said.

    Raises:
        BaseModelError: whatever keeps the files from arriving, or pickles only and no converted copy.
        ResourceError: the disk has no room, or the cache cannot be written.
    """
    found = cached(repo_id, revision, is_whole_judge) if is_commit(revision) else None
    if found is not None:
        return found
    commit, sizes = _listing(repo_id, revision)
    picked = pick_weights("model", sizes)
    if picked is None and revision is None and (conversion := _conversion(repo_id)):
        commit, sizes = _listing(repo_id, conversion)
        picked = pick_weights("model", sizes)
        say(f"{repo_id} holds pickles only on its main branch; using the hub's safetensors copy in {conversion}")
    if picked is None:
        raise _no_weights(f"{repo_id} on the hub", "the model", sizes, option="--clip")
    wanted = ("config.json", "preprocessor_config.json", *TOKENIZER_FILES)
    names = [*(name for name in wanted if name in sizes), *picked.files]
    folder = cache_folder() / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit
    _announce(repo_id, commit, folder, names, sizes, say)
    folder = _download(repo_id, commit, names, sizes, say, bars=bars)
    if not is_whole_judge(folder):
        raise BaseModelError(
            f"{repo_id} on the hub lacks a configuration, a preprocessor or a tokenizer",
            "choose a CLIP model in the transformers layout with `--clip REF`",
        )
    return folder


def not_cached(repo_id: str, revision: str | None) -> BaseModelError:
    """What to raise when the cache lacks a model and the network may not be used."""
    at = f" at revision {revision[:12]}" if revision else ""
    why = "HF_HUB_OFFLINE is set" if offline() else "this command does not download"
    return BaseModelError(
        f"{repo_id}{at} is not complete in the cache {cache_folder()}, and {why}",
        "run `attnbooth init` once with network access and without HF_HUB_OFFLINE, or give `--model` a local folder "
        "or `tiny`",
    )


def gigabytes(size: int) -> str:
    """A size for people: "3.5 GB", "12 MB", "4 kB"."""
    for unit, bytes_in_unit, digits in (("GB", 1e9, 1), ("MB", 1e6, 0)):
        if size >= bytes_in_unit:
            return f"{size / bytes_in_unit:.{digits}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _names_under(part: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]


def _require_revision(revision: str | None) -> None:
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(
            f"{revision!r} is not a revision of a hub model", "give a commit hash, a branch or a tag, or none for main"
        )


def _listing(repo_id: str, revision: str | None) -> tuple[str, dict[str, int]]:
    """The commit and its files with their sizes, in one request."""
    from huggingface_hub import HfApi, constants

    _require_revision(revision)
    with _explained(repo_id, revision):
        info = HfApi().model_info(
            repo_id, revision=revision, files_metadata=True, timeout=float(constants.HF_HUB_ETAG_TIMEOUT)
        )
        return str(info.sha), {str(file.rfilename): int(file.size or 0) for file in info.siblings or ()}


def _pipeline_texts(repo_id: str, sizes: Mapping[str, int]) -> list[str]:
    if "model_index.json" not in sizes:
        raise InputError(
            f"{repo_id} on the hub is not a diffusers pipeline: it has no model_index.json",
            "choose a Stable Diffusion 1.x or 2.x pipeline, or download its single .safetensors file and pass that",
        )
    wanted = [
        "model_index.json",
        *(f"{part}/{name}" for part, name in CONFIGS.items()),
        *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
    ]
    return [name for name in wanted if name in sizes]


def _announce(
    repo_id: str, commit: str, folder: Path, names: Iterable[str], sizes: Mapping[str, int], say: Say
) -> None:
    """Says what is about to be downloaded, and refuses when the disk has no room for it."""
    missing = sum(sizes[name] for name in names if not (folder / name).exists())
    if missing == 0:
        return
    cache = cache_folder()
    with durable.explained_write(cache):
        cache.mkdir(parents=True, exist_ok=True)
    say(f"downloading {repo_id} at {commit[:7]}, {gigabytes(missing)}, to {cache}")
    try:
        durable.require_free_space(cache, missing, f"the files of {repo_id}")
    except ResourceError as error:
        raise ResourceError(error.message, "free some space, or set HF_HOME to a folder on a larger disk") from error


def _download(
    repo_id: str,
    commit: str,
    names: list[str],
    sizes: Mapping[str, int] | None = None,
    say: Say = lambda text: None,
    *,
    bars: bool = False,
) -> Path:
    """Brings the named files of one commit into the cache, the small ones first."""
    from huggingface_hub import hf_hub_download

    sizes = sizes or {}
    folder = cache_folder()
    with _quiet(bars), _explained(repo_id, commit, "download"), durable.explained_write(folder):
        for name in sorted(names, key=lambda name: sizes.get(name, 0)):
            target = cache_folder() / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit / name
            if sizes.get(name, 0) >= _BIG and not target.exists():
                say(f"downloading {name}, {gigabytes(sizes[name])}")
            path = Path(hf_hub_download(repo_id, name, revision=commit))
            folder = path.parents[name.count("/")]
    return folder


@contextlib.contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Keeps the hub library from drawing bars of its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if bars or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _conversion(repo_id: str) -> str | None:
    """The branch of the hub bot's pull request that adds safetensors weights, if there is one."""
    from huggingface_hub import HfApi

    with _explained(repo_id, None):
        for thread in HfApi().get_repo_discussions(repo_id, author=_CONVERSION_BOT, discussion_type="pull_request"):
            if thread.author == _CONVERSION_BOT and thread.status != "closed":
                return str(thread.git_reference)
    return None


def _no_weights(where: str, part: str, names: Iterable[str], option: str = "--model") -> BaseModelError:
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        return BaseModelError(
            f"{where} has {part} only as a pickle (.bin, .ckpt), which can run code and is never loaded",
            f"choose a copy with .safetensors weights with `{option} REF`, or, if you trust the author, convert it "
            "with `save_pretrained(FOLDER, safe_serialization=True)` and pass the folder",
        )
    return BaseModelError(f"{where} has no weights of {part}", f"choose a complete model with `{option} REF`")


@contextlib.contextmanager
def _explained(repo_id: str, revision: str | None, doing: str = "look-up") -> Iterator[None]:
    """Turns what the hub library raises into a `BaseModelError` (exit code 7) that says what to do."""
    try:
        yield
    except BoothError:
        raise
    except Exception as error:
        failure = _failure(repo_id, revision, error, doing)
        if failure is None:
            raise
        raise failure from error


def _failure(repo_id: str, revision: str | None, error: Exception, doing: str) -> BaseModelError | None:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    at = f" at revision {revision}" if revision else ""
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.RevisionNotFoundError):
        return BaseModelError(
            f"{repo_id} on the hub has no revision {revision}",
            "correct `revision` under [base] in attnbooth.toml, or remove it and run `attnbooth init` again",
        )
    if isinstance(error, errors.GatedRepoError):
        return BaseModelError(
            f"{repo_id} is gated: its owner asks you to accept a licence before it may be downloaded",
            f"accept the licence on {page}, make an access token and set HF_TOKEN to it, {_ELSEWHERE}",
        )
    if isinstance(error, errors.DisabledRepoError):
        return NotOnHubError(f"{repo_id} was disabled on the hub", _ELSEWHERE.removeprefix("or "))
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotOnHubError(
            f"{repo_id} is not on the hub: it does not exist, was withdrawn, or is private",
            f"check the spelling, set HF_TOKEN if the model is private, {_ELSEWHERE}",
        )
    if status in (401, 403):
        return BaseModelError(
            f"the hub refused to hand out {repo_id} (HTTP {status})",
            f"accept the licence on {page} if it has one, and set HF_TOKEN to a valid access token, {_ELSEWHERE}",
        )
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return not_cached(repo_id, revision)
    if isinstance(error, errors.EntryNotFoundError):
        return BaseModelError(f"a file of {repo_id}{at} has gone from the hub", _RETRY)
    if status is not None:
        trouble = "asks to slow down" if status == 429 else "is in trouble"
        return BaseModelError(
            f"the hub {trouble} (HTTP {status}) while {repo_id} was asked for", f"{_RETRY}, in a few minutes"
        )
    if doing == "download" and _is_broken_transfer(error):
        return BaseModelError(f"the download of {repo_id}{at} was interrupted: {_first_line(error)}", _RETRY)
    if _is_broken_transfer(error):
        return BaseModelError(
            f"the hub at {constants.ENDPOINT} cannot be reached: {_first_line(error)}",
            "check the network and HF_ENDPOINT and run the command again, or give `--model` a local folder or `tiny`",
        )
    return None


def _is_broken_transfer(error: Exception) -> bool:
    """Connection trouble of any layer below: the HTTP client, the operating system or the hub's block store."""
    # The HTTP client is httpx or httpx2 depending on the hub library's version, so it is known by name.
    if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
        return True
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if type(error).__name__ in ("XetDownloadError", "FileMetadataError"):
        return True
    # hf_xet reports a lost connection as a bare RuntimeError, a short HTTP body is a bare OSError.
    return isinstance(error, RuntimeError) or (isinstance(error, OSError) and "Consistency check" in str(error))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
