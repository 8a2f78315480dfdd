"""Hashes of large weight files, remembered while the file is as it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from attnbooth_cli.engine import weight_hashes
from attnbooth_cli.engine.weight_hashes import file_sha256
from attnbooth_cli.project import durable


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hashes are remembered; files count as large, and as settled at once."""
    place = tmp_path / "cache" / "hashes.json"
    monkeypatch.setattr(weight_hashes, "_place", lambda: place)
    monkeypatch.setattr(weight_hashes, "LARGE", 10)
    monkeypatch.setattr(weight_hashes, "SETTLED", -1.0)
    return place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights " * 100)
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read."""
    read: list[Path] = []
    original = durable.sha256
    monkeypatch.setattr(durable, "sha256", lambda path: read.append(path) or original(path))  # type: ignore[func-returns-value]
    return read


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_hashed_once(memory: Path, file: Path, hashed: list[Path]) -> None:
    assert file_sha256(file) == file_sha256(file) == sha256(file)
    assert hashed == [file]


def test_a_link_to_it_is_the_same_file(memory: Path, file: Path, hashed: list[Path]) -> None:
    link = file.with_name("snapshot.safetensors")
    link.symlink_to(file)
    assert file_sha256(file) == file_sha256(link)
    assert hashed == [file]


def test_other_bytes_of_the_same_size_and_time_are_noticed(memory: Path, file: Path, hashed: list[Path]) -> None:
    before = file.stat()
    first = file_sha256(file)
    time.sleep(0.02)  # a tick of the file system's clock
    file.write_bytes(file.read_bytes().replace(b"weights", b"Weights"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_sha256(file) == sha256(file) != first
    assert len(hashed) == 2


def test_a_file_just_written_is_not_remembered(
    memory: Path, file: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_hashes, "SETTLED", 3600.0)
    file_sha256(file)
    file_sha256(file)
    assert len(hashed) == 2
    assert not memory.exists()


def test_a_small_file_is_not_remembered(
    memory: Path, file: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_hashes, "LARGE", 10_000)
    file_sha256(file)
    assert not memory.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": [1, 2]}', "\x00"])
def test_a_damaged_memory_is_made_anew(memory: Path, file: Path, hashed: list[Path], content: str) -> None:
    memory.parent.mkdir()
    memory.write_text(content)
    assert file_sha256(file) == file_sha256(file) == sha256(file)
    assert len(hashed) == 1


def test_a_place_that_cannot_be_written_only_costs_time(memory: Path, file: Path, hashed: list[Path]) -> None:
    memory.parent.write_text("a file where the folder should be")
    assert file_sha256(file) == file_sha256(file) == sha256(file)
    assert len(hashed) == 2


def test_only_the_latest_files_are_remembered(memory: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_hashes, "KEPT", 2)
    for name in ("a", "b", "c"):
        path = file.with_name(name)
        path.write_bytes(file.read_bytes() + name.encode())
        file_sha256(path)
    assert [Path(key).name for key in json.loads(memory.read_text())] == ["b", "c"]
