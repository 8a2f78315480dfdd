"""Whoever reads what is said goes away: a pipe's reader, a log's disk, a terminal's window."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from attnbooth_cli.cli.app import run
from tests.conftest import SHORT, Cli, program, weights

RUN = "runs/001-attndreambooth"


class Refusing:
    """A stream that takes what it is told until it holds a word, and fails from then on."""

    def __init__(self, word: str, error: int) -> None:
        self.word, self.error, self.taken, self.failures = word, error, "", 0

    def write(self, text: str) -> int:
        if self.word in self.taken:
            self.failures += 1
            raise OSError(self.error, os.strerror(self.error))  # of the kind that errno stands for
        self.taken += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise ValueError("no file")


@pytest.mark.parametrize(
    ("error", "code"), [(errno.EPIPE, 141), (errno.ENOSPC, 6), (errno.EIO, 6)], ids=["gone", "full", "closed"]
)
def test_a_training_whose_output_nobody_takes_saves_and_stops(
    cli: Cli, project: Path, trained_once: Path, monkeypatch: pytest.MonkeyPatch, error: int, code: int
) -> None:
    stdout = Refusing('"stage": "attention", "step": 3', error)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert run(["train", str(project), *SHORT, "--json"]) == code
    assert stdout.failures >= 1
    assert list((project / RUN / "checkpoints").glob("attention-00000[345]"))
    assert cli("resume", project).code == 0
    assert weights(project) == weights(trained_once)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EPIPE])
def test_what_cannot_be_said_to_stderr_stops_nothing(
    project: Path, trained_once: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    stderr = Refusing("embedding 1/2", error)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        assert run(["train", str(project), *SHORT]) == 0
        assert run(["status", str(project / "absent")]) == 2
        assert sys.stderr is stderr
    assert stderr.failures >= 1
    assert weights(project) == weights(trained_once)


def shell(line: str, *arguments: object) -> int:
    return subprocess.run(["sh", "-c", f'"$@" {line}', "sh", *program(*arguments)], timeout=60, check=False).returncode


def test_streams_that_are_closed_or_full_from_the_start(project: Path) -> None:
    assert shell("2>&-", "status", "absent") == 2
    assert shell("2>/dev/full", "status", "absent") == 2
    assert shell(">&- 2>&-", "status", project) == 0
    assert shell(">/dev/full", "status", project) == 6
    assert shell(">/dev/full", "status", project, "--json") == 6


def test_a_terminal_whose_window_is_closed(cli: Cli, project: Path) -> None:
    """SIGHUP comes, and every word to the terminal fails."""
    settings = ("--until", "embedding", "--set=train.embedding.steps=500", "--set=train.embedding.batch_size=1")
    child, terminal = pty.fork()
    if not child:
        command = program("train", project, *settings, "--json")
        os.execv(command[0], command)
    seen = b""
    while b'"step": 2' not in seen:
        seen += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert list((project / RUN / "checkpoints").glob("embedding-*"))


def test_an_error_is_told_on_stderr_where_json_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Refusing("", errno.ENOSPC))
        assert run(["status", "absent", "--json"]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
