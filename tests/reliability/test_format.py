"""The promise of the format: what older versions wrote is read, what newer ones wrote is refused untouched."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from attnbooth_cli.errors import InputError
from attnbooth_cli.project import schema
from attnbooth_cli.project.project import Project
from attnbooth_cli.project.state import read_state, write_state
from tests.conftest import Cli, snapshot

GOLDEN = Path(__file__).with_name("golden")
SCHEMAS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
RUN = Path("runs") / "001-textual-inversion"


@pytest.fixture(params=SCHEMAS)
def finished(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / request.param / "finished", tmp_path / "finished"))


@pytest.fixture(params=SCHEMAS)
def interrupted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / request.param / "interrupted", tmp_path / "interrupted"))


def test_every_kind_of_document_has_its_golden_projects() -> None:
    newest = max(schema.present(kind) for kind in schema.MIGRATIONS)
    assert [f"schema-{number}" for number in range(1, newest + 1)] == SCHEMAS


def test_a_finished_project_makes_the_picture_it_made_then(cli: Cli, finished: Path) -> None:
    before = snapshot(finished)
    assert cli("status", finished).code == 0
    done = cli("generate", finished, "a photo of {}", "--json")
    assert done.code == 0, done.err
    then, now = (
        np.asarray(Image.open(path).convert("RGB"), np.float32)
        for path in (finished / "samples" / "a-photo-of-mushroom-0.png", Path(done.document["pictures"][0]["path"]))
    )
    assert np.abs(then - now).mean() < 1  # another machine rounds otherwise, which denoising may amplify a little
    assert {name: data for name, data in snapshot(finished).items() if name in before} == before


def test_an_interrupted_run_is_continued_to_the_same_concept(cli: Cli, interrupted: Path) -> None:
    assert cli("status", interrupted).code == 0
    done = cli("resume", interrupted, "-q")
    assert done.code == 0, done.err
    assert "skipped" not in done.err
    events = [json.loads(line) for line in (interrupted / RUN / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]  # three of them then
    name = "learned_embeds.safetensors"
    (continued,) = load_file(interrupted / "concept" / name).values()
    (whole,) = load_file(GOLDEN / SCHEMAS[0] / "finished" / "concept" / name).values()
    assert continued.sub(whole).norm() / whole.norm() < 1e-4


def except_log(files: dict[str, bytes]) -> dict[str, bytes]:
    """A run's log may have a line more: that it was refused."""
    return {name: data for name, data in files.items() if Path(name).name != "events.jsonl"}


NEWER = {
    "attnbooth.toml": ("interrupted", ("train", "status", "resume", "generate")),
    "state.json": ("interrupted", ("train", "status", "resume")),
    f"{RUN}/plan.json": ("interrupted", ("train", "resume")),
    f"{RUN}/checkpoints/embedding-000003/checkpoint.json": ("interrupted", ("resume",)),
    "concept/concept.json": ("finished", ("generate", "eval", "inspect-attn")),
}


@pytest.mark.parametrize(
    ("name", "which", "verb"), [(name, which, verb) for name, (which, verbs) in NEWER.items() for verb in verbs]
)
def test_what_a_newer_version_wrote_is_refused_untouched(
    cli: Cli, tmp_path: Path, name: str, which: str, verb: str
) -> None:
    root = Path(shutil.copytree(GOLDEN / SCHEMAS[-1] / which, tmp_path / which))
    text, count = re.subn(r'^(\s*"?schema"?\s*[=:] )\d+', r"\g<1>99", (root / name).read_text(), flags=re.MULTILINE)
    assert count == 1
    (root / name).write_text(text)
    before = except_log(snapshot(root))
    done = cli(verb, root, *(["a photo of {}"] if verb in ("generate", "inspect-attn") else []))
    assert done.code == 2, done.err
    assert f"{Path(name).name} has schema 99" in done.err
    assert "upgrade attnbooth" in done.err
    assert except_log(snapshot(root)) == before


def test_a_rebuilt_index_does_not_hide_a_newer_run(cli: Cli, tmp_path: Path) -> None:
    root = Path(shutil.copytree(GOLDEN / SCHEMAS[-1] / "interrupted", tmp_path / "p"))
    plan = root / RUN / "plan.json"
    plan.write_text(plan.read_text().replace('"schema": 1', '"schema": 99', 1))
    (root / "state.json").unlink()
    assert cli("train", root).code == 2
    assert not (root / "state.json").exists()


@pytest.mark.parametrize("value", ['"1"', "0", "-1", "null", "true", "1.0"])
def test_what_is_no_version_is_damage(cli: Cli, tmp_path: Path, value: str) -> None:
    root = Path(shutil.copytree(GOLDEN / SCHEMAS[-1] / "interrupted", tmp_path / "p"))
    plan = root / RUN / "plan.json"
    plan.write_text(plan.read_text().replace('"schema": 1', f'"schema": {value}', 1))
    done = cli("resume", root)
    assert done.code == 5
    assert "plan.json is missing or damaged" in done.err


def test_older_documents_take_every_step_to_the_present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(document: dict[str, Any]) -> dict[str, Any]:
        return {"schema": document["schema"], "b": document["a"] + 1}

    def third(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "c": document["b"] * 10}

    monkeypatch.setitem(schema.MIGRATIONS, "concept", (second, third))
    old = {"schema": 1, "a": 1}
    assert schema.up_to_date("concept", old, tmp_path) == {"schema": 3, "b": 2, "c": 20}
    assert old == {"schema": 1, "a": 1}
    assert schema.up_to_date("concept", {"schema": 2, "b": 5}, tmp_path) == {"schema": 3, "b": 5, "c": 50}
    assert schema.up_to_date("concept", {"schema": 3, "b": 5}, tmp_path) == {"schema": 3, "b": 5}
    with pytest.raises(InputError, match="has schema 4; this attnbooth reads up to 3"):
        schema.up_to_date("concept", {"schema": 4}, tmp_path)


def test_an_index_is_written_in_the_present_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(document: dict[str, Any]) -> dict[str, Any]:
        document["concept_run"] = document.pop("concept")
        return document

    project = Project(Path(shutil.copytree(GOLDEN / SCHEMAS[-1] / "finished", tmp_path / "p")))
    older = json.loads(project.state.read_text())
    older["concept"] = older.pop("concept_run")
    project.state.write_text(json.dumps(older))
    monkeypatch.setitem(schema.MIGRATIONS, "state", (second,))
    state = read_state(project)
    assert state.concept_run == "001-textual-inversion"
    write_state(project, state)
    written = json.loads(project.state.read_text())
    assert (written["schema"], written["concept_run"]) == (2, "001-textual-inversion")
