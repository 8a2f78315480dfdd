"""Signals, closed pipes and other processes: nothing is lost, and the exit code says what happened."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image

from attnbooth_cli.cli.app import run
from attnbooth_cli.cli.console import Console
from tests.conftest import SHORT, Cli, leftovers, program, snapshot, weights

TIMEOUT = 60


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command as a process of its own, ended with the block whatever happens."""
    process = subprocess.Popen(program(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def wait_for(process: subprocess.Popen[str], **wanted: object) -> dict[str, Any]:
    """Reads the JSON stream up to the first event with these values."""
    for line in pipe(process.stdout):
        event = json.loads(line)
        if wanted.items() <= event.items():
            assert isinstance(event, dict)
            return event
    raise AssertionError(f"no such event: {wanted}; {pipe(process.stderr).read()}")


def checkpoints(project: Path) -> list[str]:
    return sorted(path.parent.name for path in project.glob("runs/*/checkpoints/*/checkpoint.json"))


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_stops_training_with_everything_saved(
    cli: Cli, project: Path, trained_once: Path, name: str, code: int
) -> None:
    """Users complain that Ctrl-C or a preempted machine costs them all progress."""
    longer = () if name == "SIGINT" else ("--set=train.embedding.steps=50",)
    with running("train", project, *SHORT, *longer, "--json") as process:
        first = wait_for(process, event="step", stage="embedding" if longer else "attention")
        process.send_signal(getattr(signal, name))
        events = [first, *map(json.loads, pipe(process.stdout))]
        err = pipe(process.stderr).read()
        assert process.wait(timeout=TIMEOUT) == code
    assert (events[-1]["event"], events[-1]["exit_code"]) == ("error", code)
    assert events[-1]["run"] == "001-attndreambooth"
    last = [event for event in events if event["event"] == "step"][-1]
    if last["step"] < last["steps"]:
        assert checkpoints(project) == [f"{last['stage']}-{last['step']:06d}"]
    assert "stopping after this step, and saving" in err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"hint: attnbooth resume {project}"
    assert leftovers(project) == []
    if name == "SIGINT":
        command = shlex.split(err.splitlines()[-1].removeprefix("hint: attnbooth "))
        assert cli(*command).code == 0
        assert weights(project) == weights(trained_once)


def test_a_closed_terminal_stops_training_too(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Console.document

    def document(self: Console, event: str, *arguments: Any, **fields: Any) -> None:
        original(self, event, *arguments, **fields)
        if event == "step" and fields["step"] == 1:
            signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(Console, "document", document)
    done = cli("train", project, *SHORT, "--json")
    assert done.code == 129
    assert [(event["stage"], event["step"]) for event in done.named("checkpoint")] == [("embedding", 1)]
    assert checkpoints(project) == ["embedding-000001"]


def test_a_second_signal_stops_at_once(cli: Cli, project: Path) -> None:
    """A first Ctrl-C waits for the step; somebody who presses it again does not want to wait."""
    long_steps = ("--set=train.embedding.batch_size=512", "--set=train.checkpoint_every=1")
    with running("train", project, *long_steps, "--json") as process:
        wait_for(process, event="stage", status="started")
        process.send_signal(signal.SIGINT)
        lines = pipe(process.stderr)
        assert any("once more stops at once" in line for line in lines)
        asked = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=TIMEOUT) == 130
        assert time.monotonic() - asked < 5
        assert pipe(process.stdout).read() == ""  # not even the step was finished
    assert checkpoints(project) == []
    assert cli("status", project, "--json").document["runs"][0]["status"] == "unfinished"
    assert cli("train", project, "--smoke", "--until", "embedding").code == 0  # nothing is locked or damaged


def test_signals_that_the_parent_ignores_stay_ignored() -> None:
    """`nohup attnbooth train` must outlive its terminal."""
    from attnbooth_cli.cli.signals import stop_at_safe_points

    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_at_safe_points(print) as should_stop:
            signal.raise_signal(signal.SIGHUP)
            assert should_stop() == 0
            signal.raise_signal(signal.SIGTERM)
            assert should_stop() == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_signal_leaves_the_pictures_that_were_finished(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbooth_cli.engine import generation

    original = generation.save_picture

    def save_and_signal(*arguments: Any) -> Path:
        path = original(*arguments)
        signal.raise_signal(signal.SIGINT)
        return path

    monkeypatch.setattr(generation, "save_picture", save_and_signal)
    done = cli("generate", trained, "a {}", "-n", 3, "--steps", 1, "--out", tmp_path / "out", "--json")
    assert done.code == 130
    assert done.document["exit_code"] == 130
    (path,) = (tmp_path / "out").iterdir()
    with Image.open(path) as picture:
        picture.load()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize("arguments", [("train", "PROJECT", "--dry-run"), ("--help",), ("status", "PROJECT", "--json")])
def test_a_reader_that_goes_away(project: Path, arguments: tuple[str, ...]) -> None:
    """`attnbooth ... | head -1` ends quietly."""
    with running(*(str(project) if word == "PROJECT" else word for word in arguments)) as process:
        pipe(process.stdout).close()
        assert process.wait(timeout=TIMEOUT) == 141
        assert pipe(process.stderr).read() == ""
        process.stdout = None


def test_a_reader_that_goes_away_during_training(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--smoke", "--until", "embedding", "--json", "--set=train.checkpoint_every=1")
    reading, writing = os.pipe()
    with monkeypatch.context() as patch, os.fdopen(writing, "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        os.close(reading)
        assert run(["train", str(project), *flags]) == 141
    assert "Traceback" not in capfd.readouterr().err
    assert leftovers(project) == []
    done = cli("resume", project, "--json")  # it is neither locked nor damaged, and what was done is saved
    assert [event["step"] for event in done.named("step")] == [2]


def test_one_run_at_a_time(cli: Cli, trained: Path) -> None:
    hold = "import sys, pathlib; from attnbooth_cli.project.lock import locked\nwith locked(pathlib.Path(sys.argv[1])):"
    hold += "\n print(flush=True); sys.stdin.read()"
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(trained)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        pipe(owner.stdout).readline()
        before = snapshot(trained)
        for command in (
            ("train", trained, "--smoke"),
            ("train", trained, *SHORT),
            ("resume", trained),
            ("init", trained, "--example", "--force"),
        ):
            done = cli(*command)
            assert done.code == 4
            assert f"process {owner.pid}" in done.err
        assert snapshot(trained) == before
        assert cli("status", trained).code == 0
        assert cli("train", trained, "--dry-run").code == 0
        assert cli("generate", trained, "a {}", "--steps", 1).code == 0
    finally:
        owner.kill()
        owner.communicate()
    assert cli("train", trained, *SHORT).code == 0  # a lock dies with its owner


def test_an_unexpected_failure_is_one_sentence(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbooth_cli.engine import preparation

    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(preparation, "images_folder", broken)
    done = cli("train", project, "--dry-run")
    assert done.code == 1
    assert done.err.splitlines()[0] == "error: unexpected ZeroDivisionError: oops"
    assert "-v" in done.err.splitlines()[1]
    assert os.linesep.join(done.err.splitlines()[2:]) == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_finaliser_swallows_still_counts() -> None:
    """Python ignores what is raised inside `__del__`, and libraries have many of those."""
    from attnbooth_cli.cli.signals import stop_at_once
    from attnbooth_cli.errors import StoppedError

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(StoppedError) as stopped, stop_at_once():
        Finalised()
    assert stopped.value.exit_code == 130
