"""What can go wrong between us and the model hub, each as a sentence and a hint (exit code 7).

Must import neither torch, diffusers nor transformers, and `huggingface_hub` only inside functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from attnbooth_cli.engine.model_files import PICKLE_SUFFIXES, cache_folder, offline
from attnbooth_cli.errors import BaseModelError, BoothError

_RETRY = "run the same command again: files that arrived whole are kept"


class NotOnHubError(BaseModelError):
    """The hub has no such model, or none this user may know of."""


def not_cached(repo_id: str, revision: str | None, option: str = "--model") -> BaseModelError:
    """What to raise when the cache lacks a model and the network may not be used."""
    at = f" at revision {revision[:12]}" if revision else ""
    why = "HF_HUB_OFFLINE is set" if offline() else "this command does not download"
    return BaseModelError(
        f"{repo_id}{at} is not complete in the cache {cache_folder()}, and {why}",
        f"run {'`attnbooth init`' if option == '--model' else 'this command'} once with network access and without "
        f"HF_HUB_OFFLINE, or give `{option}` a local folder{'' if option == '--dino' else ' or `tiny`'}",
    )


def no_weights(where: str, part: str, names: Iterable[str], option: str = "--model") -> BaseModelError:
    """What to raise when `names`, the files of a component, hold no safetensors weights."""
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        return BaseModelError(
            f"{where} has {part} only as a pickle (.bin, .ckpt), which can run code and is never loaded",
            f"choose a copy with .safetensors weights with `{option} REF`, or, if you trust the author, convert it "
            "with `save_pretrained(FOLDER, safe_serialization=True)` and pass the folder",
        )
    return BaseModelError(f"{where} has no weights of {part}", f"choose a complete model with `{option} REF`")


@contextlib.contextmanager
def explained(repo_id: str, revision: str | None, doing: str = "look-up", option: str = "--model") -> Iterator[None]:
    """Turns what the hub library raises into a `BaseModelError` (exit code 7) that says what to do.

    Args:
        option: The command-line option that names another model instead.
    """
    try:
        yield
    except BoothError:
        raise
    except Exception as error:
        failure = _failure(repo_id, revision, error, doing, option)
        if failure is None:
            raise
        raise failure from error


def _failure(repo_id: str, revision: str | None, error: Exception, doing: str, option: str) -> BaseModelError | None:
    from huggingface_hub import constants, errors

    elsewhere = f"or choose another with `{option}` (a local folder, a hub id or `tiny`)"

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
            f"accept the licence on {page}, make an access token and set HF_TOKEN to it, {elsewhere}",
        )
    if isinstance(error, errors.DisabledRepoError):
        return NotOnHubError(f"{repo_id} was disabled on the hub", elsewhere.removeprefix("or "))
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotOnHubError(
            f"{repo_id} is not on the hub: it does not exist, was withdrawn, or is private",
            f"check the spelling, set HF_TOKEN if the model is private, {elsewhere}",
        )
    if status in (401, 403):
        return BaseModelError(
            f"the hub refused to hand out {repo_id} (HTTP {status})",
            f"accept the licence on {page} if it has one, and set HF_TOKEN to a valid access token, {elsewhere}",
        )
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return not_cached(repo_id, revision, option)
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
            f"check the network and HF_ENDPOINT and run the command again, or give `{option}` a local folder or `tiny`",
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
