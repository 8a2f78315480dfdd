"""The model hub: which commit a name means, and exactly the files a pipeline needs, in the hub library's own cache.

Everything goes through `huggingface_hub`, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean here what they
mean everywhere. Only JSON, tokenizer text and `.safetensors` are ever asked for: pickles are not even downloaded.
A file that is in the cache for a commit is never asked for again, and a pinned revision that is cached whole needs no
network at all. Must import neither torch, diffusers nor transformers, and `huggingface_hub` only inside functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from attnbooth_cli.engine.hub_failures import explained, no_weights
from attnbooth_cli.engine.model_files import (
    CONFIGS,
    TOKENIZER_FILES,
    WEIGHTED,
    JudgeKind,
    cache_folder,
    cached,
    has_configs,
    is_commit,
    pick_weights,
    require_revision,
    weights_in,
)
from attnbooth_cli.errors import BaseModelError, InputError, ResourceError
from attnbooth_cli.project import durable

Say = Callable[[str], None]

_BIG = 50_000_000
# The hub's own bot, whose pull requests carry a safetensors copy of a repository's pickles; transformers' loader
# trusts the same author (safetensors_conversion.py).
_CONVERSION_BOT = "SFconvertbot"


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
            raise no_weights(f"{repo_id} on the hub", f"the {part}", names)
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


def fetch_judge(repo_id: str, revision: str | None, kind: JudgeKind, say: Say, *, bars: bool = False) -> Path:
    """A judge on disk, downloaded where it is not cached. The folder's name is the commit.

    Where `main` holds pickles only, the hub's own converted copy (a pull request of its bot) is used, and said.

    Raises:
        BaseModelError: whatever keeps the files from arriving, or pickles only and no converted copy.
        ResourceError: the disk has no room, or the cache cannot be written.
    """
    found = cached(repo_id, revision, kind.is_whole) if is_commit(revision) else None
    if found is not None:
        return found
    commit, sizes = _listing(repo_id, revision, kind.option)
    picked = pick_weights("model", sizes)
    if picked is None and revision is None and (conversion := _conversion(repo_id, kind.option)):
        commit, sizes = _listing(repo_id, conversion, kind.option)
        picked = pick_weights("model", sizes)
        say(f"{repo_id} holds pickles only on its main branch; using the hub's safetensors copy in {conversion}")
    if picked is None:
        raise no_weights(f"{repo_id} on the hub", "the model", sizes, option=kind.option)
    wanted = ("config.json", "preprocessor_config.json", *(TOKENIZER_FILES if kind.reads_text else ()))
    names = [*(name for name in wanted if name in sizes), *picked.files]
    folder = cache_folder() / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit
    _announce(repo_id, commit, folder, names, sizes, say)
    folder = _download(repo_id, commit, names, sizes, say, bars=bars, option=kind.option)
    if not kind.is_whole(folder):
        raise BaseModelError(
            f"{repo_id} on the hub lacks a configuration, a preprocessor{' or a tokenizer' if kind.reads_text else ''}",
            f"choose a {kind.name} model in the transformers layout with `{kind.option} REF`",
        )
    return folder


def gigabytes(size: int) -> str:
    """A size for people: "3.5 GB", "12 MB", "4 kB"."""
    for unit, bytes_in_unit, digits in (("GB", 1e9, 1), ("MB", 1e6, 0)):
        if size >= bytes_in_unit:
            return f"{size / bytes_in_unit:.{digits}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _names_under(part: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]


def _listing(repo_id: str, revision: str | None, option: str = "--model") -> tuple[str, dict[str, int]]:
    """The commit and its files with their sizes, in one request."""
    from huggingface_hub import HfApi, constants

    require_revision(revision)
    with explained(repo_id, revision, option=option):
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
    option: str = "--model",
) -> Path:
    """Brings the named files of one commit into the cache, the small ones first."""
    from huggingface_hub import hf_hub_download

    sizes = sizes or {}
    folder = cache_folder()
    with _quiet(bars), explained(repo_id, commit, "download", option), durable.explained_write(folder):
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


def _conversion(repo_id: str, option: str) -> str | None:
    """The branch of the hub bot's pull request that adds safetensors weights, if there is one."""
    from huggingface_hub import HfApi

    with explained(repo_id, None, option=option):
        for thread in HfApi().get_repo_discussions(repo_id, author=_CONVERSION_BOT, discussion_type="pull_request"):
            if thread.author == _CONVERSION_BOT and thread.status != "closed":
                return str(thread.git_reference)
    return None
