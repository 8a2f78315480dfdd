"""Every input of the table ends with its exit code and one clear sentence: no hang and no traceback."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli, Outcome, quick
from tests.reliability.bad_inputs import MANIFEST, ONE_STEP, TABLE, Bad
from tests.reliability.bad_inputs import project as new_project
from tests.reliability.strangers import RUN, STRANGERS, run_called

LONGEST = 1500
"""Characters of an error that can still be called a sentence."""


@pytest.fixture(scope="module")
def finished_once(engine_loaded: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose first stage was trained for one step. Read only."""
    from attnbooth_cli.cli.app import run

    root = new_project(tmp_path_factory.mktemp("stranger"), MANIFEST)
    with contextlib.redirect_stdout(io.StringIO()), quick():
        assert run(["train", str(root), *ONE_STEP, "-q"]) == 0
    return root


def check(done: Outcome, bad: Bad) -> None:
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == bad.code, done.err[-3000:]
    assert len(errors) == 1, done.err[-3000:]
    assert bad.says in errors[0]
    assert len(errors[0]) <= LONGEST
    assert all(line.isprintable() for line in done.err.splitlines())
    assert done.err.splitlines()[-1].startswith(("error: ", "hint: "))
    assert "Traceback" not in done.err
    assert done.out == ""


def meet(cli: Cli, bad: Bad, place: Path) -> None:
    bad.make(place)
    check(cli(*(word.replace("PLACE", str(place)) for word in bad.command)), bad)


def named(bad: Bad) -> str:
    return bad.name


@pytest.mark.parametrize("bad", TABLE, ids=named)
def test_a_bad_input(cli: Cli, tmp_path: Path, bad: Bad) -> None:
    meet(cli, bad, tmp_path)


@pytest.mark.parametrize("bad", STRANGERS, ids=named)
def test_a_project_from_a_stranger(cli: Cli, tmp_path: Path, finished_once: Path, bad: Bad) -> None:
    shutil.copytree(finished_once, tmp_path / "p")
    meet(cli, bad, tmp_path)


@pytest.mark.parametrize("name", ["../../x", "/tmp", "..", "a\\b", ""])
def test_a_state_whose_run_is_a_path_is_rebuilt(cli: Cli, tmp_path: Path, finished_once: Path, name: str) -> None:
    """Whatever stands in `runs/` counts, and nothing outside is touched."""
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    run_called(name)(root)
    (run,) = cli("status", root, "--json").document["runs"]
    assert run["name"] == RUN


@pytest.mark.parametrize("name", [".lock", ".lock.owner", "concept", "samples"])
def test_nothing_is_written_through_a_link(cli: Cli, tmp_path: Path, finished_once: Path, name: str) -> None:
    """A stranger's project may hold a link to one's own files."""
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    mine = tmp_path / "mine"
    mine.write_text("precious", encoding="utf-8")
    if (root / name).is_dir():
        shutil.rmtree(root / name)
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(mine)
    done = cli("train", root, *ONE_STEP)
    assert done.code in (0, 2)
    assert "Traceback" not in done.err
    assert mine.read_text(encoding="utf-8") == "precious"
