"""Everything after `init`, and all of it on the bundled model, works without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import tomllib
from pathlib import Path

import pytest

from attnbooth_cli.engine.base_models import bundled_folder
from tests.conftest import Cli, pictures, snapshot
from tests.fake_hub import fake_hub


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Makes every use of a socket an error, and lists them: some library might swallow the error."""
    attempts: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        attempts.append(arguments)
        raise OSError("the network is blocked by this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    return attempts


def test_all_commands_without_a_network(
    cli: Cli, tmp_path: Path, no_network: list[object], few_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users complain that a tool whose files are all there still asks the hub, and fails on the train.

    HF_HUB_OFFLINE is set in all other tests; here nobody thought of it.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    root, prompts = tmp_path / "toadstool", tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {}\n")
    commands: list[tuple[object, ...]] = [
        ("init", root, "--example"),
        ("train", root, "--smoke"),
        ("resume", root),
        ("generate", root, "a photo of a {}", "--steps", 1),
        ("eval", root, "--prompts", prompts, "-n", 1),
        ("inspect-attn", root, "a photo of a {}", "--steps", 1),
        ("status", root),
    ]
    for command in commands:
        done = cli(*command)
        assert done.code == 0, (command, done.err)
    assert no_network == []


def test_a_model_of_the_hub_is_pinned_by_init_and_outlives_its_withdrawal(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users complain that the base model changed or vanished between two runs: commit and weights are recorded."""
    from huggingface_hub import constants

    root, files = tmp_path / "toadstool", snapshot(bundled_folder())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub() as hub, monkeypatch.context() as online:
        commit = hub.add("me/small", {name: data for name, data in files.items() if not name.startswith("clip/")})
        url = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": url, "HF_HUB_OFFLINE": False}.items():
            online.setattr(constants, name, value)
        done = cli("init", root, "--images", pictures(tmp_path / "in"), "--category", "cat", "--model", "me/small")
        assert done.code == 0
        assert f"downloading me/small at {commit[:7]}, 1" in done.err  # and so many megabytes
        manifest = tomllib.loads((root / "attnbooth.toml").read_text(encoding="utf-8"))
        assert manifest["base"] == {"model": "me/small", "revision": commit}
        hub.add("me/small", {"model_index.json": b"other"}, mode="missing")
        asked = len(hub.requests)
        assert cli("train", root, "--smoke", "--until", "embedding").code == 0
        assert cli("generate", root, "a {}", "--steps", 1).code == 0
        assert len(hub.requests) == asked
    base = json.loads((root / "concept" / "concept.json").read_text(encoding="utf-8"))["base"]
    unet = hashlib.sha256(files["unet/diffusion_pytorch_model.safetensors"]).hexdigest()
    assert (base["model"], base["revision"], base["sha256"]) == ("me/small", commit, unet)
    shutil.rmtree(tmp_path / "cache")
    for command in (("train", root, "--fast"), ("generate", root, "a {}")):
        done = cli(*command)
        assert done.code == 7
        assert commit[:12] in done.err


def test_a_base_model_that_is_not_cached_is_said_at_once(cli: Cli, tmp_path: Path, no_network: list[object]) -> None:
    root = pictures(tmp_path / "cat")
    done = cli("train", root)
    assert done.code == 7
    assert "HF_HUB_OFFLINE" in done.err
    assert "tiny" in done.err
    assert no_network == []
    assert not (root / "attnbooth.toml").exists()
