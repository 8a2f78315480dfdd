"""Notice from a scheduler, by a signal or a file: training saves and says how to go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.signals import STOP_FILE, stop_at_safe_points
from tests.conftest import SHORT, Cli, weights


@pytest.mark.parametrize(("notice", "code"), [("signal", 128 + signal.SIGUSR1), ("file", 143)])
def test_training_stops_and_goes_on(
    cli: Cli, project: Path, trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notice: str, code: int
) -> None:
    file = tmp_path / "preempted"
    monkeypatch.setenv(STOP_FILE, str(file))
    original = Console.document

    def document(self: Console, event: str, *arguments: Any, **fields: Any) -> None:
        original(self, event, *arguments, **fields)
        if event == "step" and (fields["stage"], fields["step"]) == ("attention", 3):
            file.touch() if notice == "file" else os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(Console, "document", document)
        done = cli("train", project, *SHORT, "--json")
    assert done.code == code
    assert done.named("checkpoint")[-1]["step"] in (3, 4)
    assert done.err.splitlines()[-1] == f"hint: attnbooth resume {project}"
    file.unlink(missing_ok=True)
    assert cli("resume", project).code == 0
    assert weights(project) == weights(trained_once)


def test_the_file_is_looked_for_and_the_signal_handled_in_training_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    before = signal.getsignal(signal.SIGUSR1)
    with stop_at_safe_points(said.append) as should_stop:
        assert should_stop() == 0
        (tmp_path / "stop").touch()
        assert should_stop() == should_stop() == signal.SIGTERM
    (only,) = said
    assert str(tmp_path / "stop") in only
    assert signal.getsignal(signal.SIGUSR1) == before
