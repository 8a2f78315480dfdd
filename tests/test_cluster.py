"""`--executor ray`: a local cluster with two workers, of which some are killed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbooth_cli.cli import many
from attnbooth_cli.cli.console import Console
from attnbooth_cli.engine.cluster import LOCAL
from tests.conftest import SHORT, Cli, example_project, leftovers, weights

SHORT_RUN = (*SHORT, "--set=train.checkpoint_every=2", "--executor", "ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of this machine with room for two concepts."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    # Workers give way to everything else by default, which on a busy machine is forever.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        **LOCAL,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import what they are to call, and with it make samples in few steps, as `conftest.quick` does it here."""
    from tests.ray_workers import explain

    monkeypatch.setattr(many, "explain", explain)


def owner(project: Path) -> int:
    """The process that trains a project."""
    return int(json.loads((project / ".lock.owner").read_text(encoding="utf-8"))["pid"])


def on_step(
    monkeypatch: pytest.MonkeyPatch, project: Path, stage: str, step: int, do: Callable[[], object]
) -> list[int]:
    """Does something at the first event from this step of a project on; gives a list that then has the step."""
    original = Console.document
    done: list[int] = []

    def document(self: Console, event: str, root: object, *arguments: Any, **fields: Any) -> None:
        original(self, event, root, *arguments, **fields)
        if event == "step" and root == project and fields["stage"] == stage and fields["step"] >= step and not done:
            done.append(fields["step"])
            do()

    monkeypatch.setattr(Console, "document", document)
    return done


def test_a_killed_worker_costs_only_its_steps_and_failures_stay_their_own(
    cli: Cli, cluster: Any, tmp_path: Path, trained_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, empty = (example_project(tmp_path / name) for name in ("toadstool", "other", "empty"))
    shutil.rmtree(empty / "images")
    absent = tmp_path / "absent"
    killed = on_step(monkeypatch, one, "attention", 4, lambda: os.kill(owner(one), signal.SIGKILL))
    done = cli("train", absent, one, empty, two, *SHORT_RUN, "--json")
    assert killed, done.err
    assert done.code == 2
    assert {event["project"] for event in done.named("done")} == {str(one), str(two)}
    assert {event["project"] for event in done.named("error")} == {str(absent), str(empty)}
    starts = [event["resumed_from"] for event in done.named("start") if event["project"] == str(one)]
    assert starts[0] is None
    assert [start[:9] for start in starts[1:]] == ["attention"]  # from a checkpoint of the stage it was killed in
    assert f"{one}: the worker on" in done.err
    (summary,) = done.named("summary")
    assert [(row["project"], row["result"], row["exit_code"]) for row in summary["projects"]] == [
        (str(absent), "failed", 2),
        (str(one), "done", 0),
        (str(empty), "failed", 2),
        (str(two), "done", 0),
    ]
    assert done.events[-1] == summary
    assert weights(one) == weights(trained_once)  # as if nothing had happened
    assert weights(two).keys() == weights(one).keys()
    assert leftovers(tmp_path) == []


def test_a_signal_lets_every_run_save(cli: Cli, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [example_project(tmp_path / name) for name in ("one", "two", "three")]
    on_step(monkeypatch, roots[0], "embedding", 1, lambda: signal.raise_signal(signal.SIGINT))
    done = cli("train", *roots, *SHORT_RUN, "--json", "--set=train.embedding.steps=2000", "--retries", 0)
    assert done.code == 130
    (summary,) = done.named("summary")
    assert summary["exit_code"] == 130
    results = {row["project"]: row["result"] for row in summary["projects"]}
    assert results.pop(str(roots[2])) == "not begun"
    assert set(results.values()) <= {"stopped", "not begun"}
    assert results[str(roots[0])] == "stopped"
    assert list(roots[0].glob("runs/*/checkpoints/*/checkpoint.json"))
    assert "resume" in summary["projects"][0]["hint"]
    assert not (roots[2] / "runs").exists()
