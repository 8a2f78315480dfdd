"""Everything after `init`, and all of it on the bundled model, works without a network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.conftest import Cli


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
    cli: Cli, tmp_path: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
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
        ("inspect-attn", root, "a photo of a {}"),
        ("status", root),
    ]
    for command in commands:
        done = cli(*command)
        assert done.code == 0, (command, done.err)
    assert no_network == []


def test_a_base_model_that_is_not_cached_is_said_at_once(cli: Cli, tmp_path: Path, no_network: list[object]) -> None:
    from tests.conftest import pictures

    root = pictures(tmp_path / "cat")
    done = cli("train", root)
    assert done.code == 7
    assert "HF_HUB_OFFLINE" in done.err
    assert "tiny" in done.err
    assert no_network == []
    assert not (root / "attnbooth.toml").exists()
