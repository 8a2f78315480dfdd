"""Several commands at once on one project, locks whose owners are gone, and clocks that jump."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from attnbooth_cli.engine import execution
from attnbooth_cli.project.durable import TEMPORARY_PREFIX
from attnbooth_cli.project.lock import LOCK_NAME
from tests.conftest import SHORT, Cli, leftovers, mounted, snapshot, weights
from tests.reliability.processes import TIMEOUT, finished, running
from tests.reliability.scenarios import TWO_STEPS, declared_two_steps

YEAR = 365 * 24 * 3600.0


def test_of_eight_trainings_of_a_project_one_does_the_work(cli: Cli, project: Path, tmp_path: Path) -> None:
    declared_two_steps(project)
    whole = Path(shutil.copytree(project, tmp_path / "whole"))
    assert finished(tmp_path / "said.txt", "train", whole, "-q") == 0
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(tmp_path / f"{k}.txt", "train", project, "-q")) for k in range(8)]
        codes = []
        for process in processes:
            process.join(TIMEOUT)
            codes.append(process.exitcode)
    assert Counter(codes) == {0: codes.count(0), 4: codes.count(4)}
    assert codes.count(0) >= 1  # one that comes late finds it trained already, and has nothing to do
    assert codes.count(4) >= 5
    assert len(list((project / "runs").iterdir())) == 1
    for k, code in enumerate(codes):
        if code == 4:
            assert "is in use by another run" in (tmp_path / f"{k}.txt").read_text()
    assert weights(project) == weights(whole)
    assert leftovers(project) == []


def test_whoever_reads_need_not_wait(cli: Cli, trained: Path, tmp_path: Path) -> None:
    with running(tmp_path / "said.txt", "train", trained, "--restart", *TWO_STEPS, "-q") as writer:
        owner = trained / f"{LOCK_NAME}.owner"  # the lock's own file stays when nobody holds it
        while not owner.exists() and writer.is_alive():
            time.sleep(0.01)
        assert cli("status", trained).code == 0
        assert writer.is_alive()
        assert cli("generate", trained, "a photo of a {}", "--steps=1", "-q").code == 0
        writer.join(TIMEOUT)
        assert writer.exitcode == 0
    assert cli("generate", trained, "a photo of a {}", "--steps=1", "-q").code == 0


@pytest.mark.parametrize("pid", [os.getpid(), 1, 2**22 + 1], ids=["ours", "another's", "nobody's"])
def test_a_dead_owners_name_locks_nothing(cli: Cli, trained: Path, pid: int) -> None:
    """The number may be another process's by now: what counts is the system's lock, which died with its owner."""
    (trained / LOCK_NAME).touch()
    owner = {"pid": pid, "host": "elsewhere", "since": "2020-01-01T00:00:00+00:00"}
    (trained / f"{LOCK_NAME}.owner").write_text(json.dumps(owner))
    assert cli("train", trained, *SHORT).code == 0
    assert not (trained / f"{LOCK_NAME}.owner").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = snapshot(project)
    done = cli("train", project, *SHORT)
    assert done.code == 6
    assert "has no locks" in done.err
    assert snapshot(project) == before


@pytest.mark.parametrize("jump", [YEAR, -YEAR], ids=["forwards", "backwards"])
def test_a_clock_that_jumps_changes_nothing(
    cli: Cli, project: Path, trained_once: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    clock, calls = time.time, 0

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return clock() + (jump if calls > 20 else 0.0)

    monkeypatch.setattr(time, "time", jumping)
    assert cli("train", project, *SHORT, "-q").code == 0
    assert calls > 20
    monkeypatch.undo()
    assert weights(project) == weights(trained_once)
    assert cli("status", project).code == 0
    assert cli("train", project, *SHORT).code == 0  # nothing to do


def test_a_clock_that_jumps_takes_no_file_from_under_its_writer(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left by the living (here the process above this one) and by a process that is gone."""
    living, gone = (trained / f"{TEMPORARY_PREFIX}{number}-half" for number in (os.getppid(), 2**22 + 1))
    for path in (living, gone):
        path.touch()
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + YEAR)
    assert cli("generate", trained, "a photo of a {}", "--steps=1", "-q").code == 0
    assert (living.exists(), gone.exists()) == (True, False)


def test_a_full_disk_is_waited_out(cli: Cli, tmp_path: Path, project: Path, trained_once: Path) -> None:
    """Refused before it begins if it cannot end well; and if others fill the disk, continued once there is room."""
    with mounted(tmp_path / "disk", "size=40m") as disk:
        root = Path(shutil.copytree(project, disk / "p"))
        done = cli("train", root, *SHORT)
        assert done.code == 6
        assert "GB are free" in done.err
        subprocess.run(["mount", "-o", "remount,size=600m", str(disk)], check=True)
        filler = disk / "others"

        run_stage = execution.run_stage

        def once_others_filled_it(*arguments: Any, **options: Any) -> None:
            filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - 200_000))
            run_stage(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(execution, "run_stage", once_others_filled_it)
            assert cli("train", root, *SHORT).code == 6
        assert cli("status", root).code == 0
        filler.unlink()
        assert cli("train", root, *SHORT, "-q").code == 0
        assert weights(root) == weights(trained_once)
        assert leftovers(root) == []
