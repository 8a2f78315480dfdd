"""Several projects in one command: which, in what order, and what is said of each at the end."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbooth_cli.cli.outcomes import Outcome, table
from attnbooth_cli.engine import training
from attnbooth_cli.engine.cluster import parse_resources
from attnbooth_cli.engine.cluster_head import Crew, Resources, fits
from attnbooth_cli.engine.cluster_worker import Work
from attnbooth_cli.errors import BoothError, DamagedError, InputError, LockedError, StoppedError
from attnbooth_cli.events import Emit, Finished
from tests.conftest import Cli

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Puts projects in the current folder and something else in the place of resuming them.

    Call it with what happens to each project: a failure to raise, or fields of its end. It gives the list of those
    that were resumed.
    """
    from attnbooth_cli.cli import train as command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "open_project", lambda _: None)

    def prepare(**outcomes: BoothError | dict[str, Any]) -> list[str]:
        called: list[str] = []

        def resume(root: Path, *, emit: Emit, **_: object) -> None:
            called.append(str(root))
            outcome = outcomes.get(root.name, {})
            if isinstance(outcome, BoothError):
                raise outcome
            emit(Finished(**{"run": "001", "concept": str(root / "concept"), "stages": (), "seconds": 1.0, **outcome}))

        monkeypatch.setattr(training, "resume", resume)
        return called

    return prepare


def rows(summary: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(row["project"], row["result"], row["exit_code"]) for row in summary["projects"]]


def test_a_list_names_more_projects(cli: Cli, resumed: Callable[..., list[str]]) -> None:
    called = resumed(b={"nothing_to_do": True})
    Path("lists").mkdir()
    Path("lists/mine.txt").write_text("\ufeff# those of Monday\n\n  b  \r\nc c\na/../a\n", encoding="utf-8")
    done = cli("resume", "a", "--from", "lists/mine.txt", "--json")
    assert done.code == 0
    assert called == ["a", "b", "c c"]  # from the current folder, and each once
    assert "note: a/../a is named more than once" in done.err
    (summary,) = done.named("summary")
    assert done.events[-1] == summary
    assert rows(summary) == [("a", "done", 0), ("b", "nothing to do", 0), ("c c", "done", 0)]
    assert {row["run"] for row in summary["projects"]} == {"001"}
    assert all(row["seconds"] >= 0 for row in summary["projects"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent", None, "cannot read"),
        ("empty", "# nothing\n\n", "names no project"),
        ("binary", "a\0b\n", "a control character in line 1"),
        ("long", "a" * 10_000_001, "million characters"),
        ("/dev/zero", None, "million characters"),
        ("lists/inside", "p\nq\n", "beside the list"),
    ],
)
def test_a_list_that_cannot_be_used(
    cli: Cli, resumed: Callable[..., list[str]], name: str, text: str | None, said: str
) -> None:
    called = resumed()
    Path("lists/p").mkdir(parents=True)
    if text is not None:
        Path(name).write_text(text, encoding="utf-8")
    done = cli("resume", "--from", name)
    assert done.code == 2
    assert said in done.err
    assert called == []


@pytest.mark.parametrize("command", ["train", "resume"])
def test_no_project_at_all(cli: Cli, command: str) -> None:
    done = cli(command)
    assert done.code == 2
    assert "--from" in done.err


def test_the_table_tells_of_failures_in_few_words(cli: Cli, resumed: Callable[..., list[str]]) -> None:
    called = resumed(b=DamagedError("b is damaged"), c=LockedError("c is in use"))
    done = cli("resume", *NAMES)
    assert done.code == 5
    assert called == list(NAMES)
    lines = done.out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("project "))
    assert [line.split("  ")[0].strip() for line in lines[start + 1 : -1]] == list(NAMES)
    assert [line for line in lines if "failed (5)" in line and "b is damaged" in line]
    assert [line for line in lines if "failed (4)" in line and "c is in use" in line]
    assert lines[-1].startswith("2 done, 2 failed; ")
    assert "goes on with what is left" in done.err
    resumed()
    done = cli("resume", "a")
    assert "project " not in done.out  # one project needs no table
    assert cli("resume", "a", "--json").named("summary") == []


def test_a_signal_ends_it_and_the_rest_is_not_begun(cli: Cli, resumed: Callable[..., list[str]]) -> None:
    called = resumed(b=StoppedError("everything is saved", "attnbooth resume b", signal.SIGINT))
    done = cli("resume", *NAMES, "--json")
    assert done.code == 130
    assert called == ["a", "b"]
    (summary,) = done.named("summary")
    assert summary["exit_code"] == 130
    assert rows(summary) == [("a", "done", 0), ("b", "stopped", 130), ("c", "not begun", 0), ("d", "not begun", 0)]


@pytest.mark.parametrize("width", [50, 80, 1000])
def test_the_tablefits(width: int) -> None:
    outcomes = {
        Path("a"): Outcome("done", "001", 75.0),
        Path("concepts/a-rather-long-name"): Outcome("failed", None, 0.1, 2, "wrong " * 40, None),
    }
    lines = list(table(outcomes, width))
    assert max(map(len, lines)) <= max(width, 55) or width == 1000
    assert any("failed (2)" in line for line in lines)
    assert any("wrong wrong" in line for line in lines)


# --- what Ray is asked for; with a cluster: test_cluster.py -----------------------------------------------------------


def test_without_ray_it_is_said_how_to_get_it(
    cli: Cli, resumed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbooth_cli.engine import cluster

    called = resumed()
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    done = cli("resume", "a", "b", "--executor", "ray")
    assert done.code == 2
    assert "pip install 'attnbooth[ray]'" in done.err
    assert called == []


def test_resources() -> None:
    assert parse_resources("") == Resources(cpu=1, gpu=None)
    assert parse_resources(" cpu=2, gpu=0.5,memory=16,fast_disk=1 ") == Resources(
        2, 0.5, 16_000_000_000, (("fast_disk", 1.0),)
    )
    assert parse_resources("gpu=0").gpu == 0


@pytest.mark.parametrize(
    "text", ["cpu", "cpu=", "cpu=many", "cpu=-1", "cpu=nan", "cpu=inf", "=1", "cpu=1,cpu=2", "cpu=1.5", "gpu=2"]
)
def test_resources_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError):
        parse_resources(text)


def test_resources_without_ray_would_do_nothing(cli: Cli, resumed: Callable[..., list[str]]) -> None:
    called = resumed()
    assert cli("resume", "a", "--resources", "cpu=2").code == 2
    assert called == []


def test_how_many_concepts_fit_a_node() -> None:
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}
    assert fits(node, {"CPU": 1, "GPU": 1}) == 2
    assert fits(node, {"CPU": 1, "GPU": 0.3}) == 6
    assert fits(node, {"CPU": 3}) == 2
    assert fits(node, {"CPU": 1, "memory": 40e9}) == 1
    assert fits(node, {"TPU": 1}) == 0


def test_a_cluster_whose_output_nobody_reads_any_more_saves_and_stops(
    resumed: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`attnbooth resume a b --executor ray --json | head`: an exception would take the workers' steps with it."""
    from attnbooth_cli.cli import many
    from attnbooth_cli.cli.console import Console

    asked: list[int] = []

    def train_many(projects: list[Path], *_: object, emit: Any, ended: Any, should_stop: Any, **__: object) -> int:
        asked.append(should_stop())
        for root in projects:
            emit(root, Finished("001", None, (), 1.0))
        asked.append(should_stop())
        ended(projects[0], StoppedError("everything is saved", None, 13), 1.0)
        return int(asked[-1])

    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(many, "train_many", train_many)
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(many, "silence", lambda _: None)
    with pytest.raises(BrokenPipeError):
        many.spread(
            Console(True, True, False), [Path("a"), Path("b")], Work("resume"), Crew(Resources(), 0), lambda *_: None
        )
    assert asked == [0, signal.SIGPIPE]
