"""Every input of the table ends with its exit code and one clear sentence: no hang and no traceback."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attnbooth_cli.project.samples import METADATA_KEY, find_pictures, save_new, save_picture
from tests.conftest import Cli, Outcome, pictures
from tests.reliability.bad_inputs import MANIFEST, ONE_STEP, TABLE, Bad, png
from tests.reliability.bad_inputs import project as new_project
from tests.reliability.strangers import RUN, STRANGERS, edit_json, run_called

LONGEST = 1500
"""Characters of an error that can still be called a sentence."""


@pytest.fixture(scope="module")
def finished_once(engine_loaded: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose first stage was trained for one step. Read only."""
    from attnbooth_cli.cli.app import run

    root = new_project(tmp_path_factory.mktemp("stranger"), MANIFEST)
    with contextlib.redirect_stdout(io.StringIO()):
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


@pytest.mark.parametrize("event", ["{}", '{"event": "stage", "status": "finished", "stage": "embedding"}'])
def test_an_index_whose_concept_is_of_a_path_is_rebuilt(
    cli: Cli, tmp_path: Path, finished_once: Path, event: str
) -> None:
    """Else the next training would not see that there is a concept, and replace it."""
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    edit_json("state.json", lambda document: document.update(concept_run="../../x"))(root)
    (root / "runs" / RUN / "events.jsonl").write_text(f"{event}\n", encoding="utf-8")
    done = cli("train", root, *ONE_STEP, "--seed", 7)
    assert done.code == 2
    assert "--restart" in done.err


def test_a_concept_is_not_replaced_because_the_index_does_not_name_it(
    cli: Cli, tmp_path: Path, finished_once: Path
) -> None:
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    edit_json("state.json", lambda document: document.update(concept_run=None))(root)
    done = cli("train", root, *ONE_STEP, "--seed", 7)
    assert done.code == 2
    assert "--restart" in done.err


def test_no_terminal_gets_a_strangers_escapes(cli: Cli, tmp_path: Path, finished_once: Path) -> None:
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    edit_json("state.json", lambda document: document["runs"][0].update(stages=["\x1b[31mred"]))(root)
    edit_json("concept/concept.json", lambda document: document.update(token="\x1b]0;title\x07"))(root)
    done = cli("status", root)
    assert done.code == 0
    assert "[31mred" in done.out
    assert "\x1b" not in done.out + done.err


def test_a_card_that_names_no_stages_is_no_concept(cli: Cli, tmp_path: Path, finished_once: Path) -> None:
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    edit_json("concept/concept.json", lambda document: document.update(stages={"unet": 1}))(root)
    assert cli("status", root, "--json").document["concept"] is None
    assert cli("status", root).code == 0


def test_events_that_are_none_of_ours_do_not_fail_a_run(cli: Cli, tmp_path: Path, finished_once: Path) -> None:
    """Its page leaves them out."""
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    step = {"time": 1.0, "event": "step", "stage": "embedding", "step": 1, "diffusion_loss": 0.1, "attention_loss": 0.1}
    sample = {"time": 2.0, "event": "sample", "stage": "embedding", "step": 1, "path": f"{RUN}-embedding.png"}
    strange = [
        {**step, "seconds": 0.1, "step": math.inf},
        {**step, "seconds": 0.1, "diffusion_loss": 10**400},
        {**step, "seconds": 0.1, "time": 10**400},
        {**step, "seconds": math.inf},
        {"time": 1.0, "event": "start", "device": ["<script>"]},
        {"time": 2.0, "event": "done", "seconds": "x"},
        {**sample, "prompt": "\ud800", "seed": 1},
        {**sample, "prompt": "a", "seed": 1, "path": "a\0b"},
    ]
    with (root / "runs" / RUN / "events.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in strange)
    edit_json(f"runs/{RUN}/plan.json", lambda document: document.update(versions=[1]))(root)
    shutil.rmtree(root / "concept")
    (root / "runs" / RUN / "report.html").unlink()
    done = cli("resume", root)
    assert done.code == 0, done.err
    assert (root / "runs" / RUN / "report.html").exists()


def test_a_name_that_a_link_to_nothing_has_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone")
    assert save_new(tmp_path, "a", ".png", b"x") == tmp_path / "a-2.png"
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("what", ["a bomb", "nested", "a pipe"])
def test_what_is_no_picture_of_ours_is_not_taken_for_one(tmp_path: Path, what: str) -> None:
    place = tmp_path / "a.png"
    if what == "a bomb":
        place.write_bytes(png(30_000, 30_000, bytes(1000)))
    elif what == "nested":
        save_picture(tmp_path, "a", Image.new("RGB", (8, 8)), {})
        info = PngInfo()
        info.add_itxt(METADATA_KEY, "[" * 100_000)
        Image.new("RGB", (8, 8)).save(place, pnginfo=info)
    else:
        os.mkfifo(place)
    assert find_pictures(tmp_path, ["a"], [{"seed": 0}]) == {}


def test_a_folder_whose_name_is_no_text_becomes_a_project(cli: Cli, tmp_path: Path) -> None:
    root = pictures(tmp_path / "in").with_name("caf\udce9")
    done = cli("init", root, "--images", tmp_path / "in", "--category", "cat", "--model", "tiny", "-q")
    assert done.code == 0, done.err
    assert cli("train", root, "--dry-run", "-q").code == 0


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
