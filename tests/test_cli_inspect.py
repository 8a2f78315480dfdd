"""`attnbooth inspect-attn` and `status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from attnbooth_cli.project.samples import read_metadata
from tests.conftest import Cli, snapshot

PROMPT = "a photo of a {} on the beach"

# --- inspect-attn -----------------------------------------------------------------------------------------------------


def test_one_map_a_word(cli: Cli, trained: Path) -> None:
    done = cli("inspect-attn", trained, PROMPT, "--seed", 4, "--json")
    assert done.code == 0
    document = done.document
    assert [document[key] for key in ("schema", "event", "project", "run")] == [
        1, "inspect-attn", str(trained), "001-attndreambooth",
    ]  # fmt: skip
    words = [row["word"] for row in document["words"]]
    assert words == ["a", "photo", "of", "<toadstool>", "mushroom", "on", "the", "beach"]
    assert len(document["layers"]) > 1
    assert document["pooling"]
    maps = load_file(Path(document["folder"]) / "maps.safetensors")
    assert set(maps) == set(words)
    for row in document["words"]:
        assert row["mean"] == pytest.approx(float(maps[row["word"]].mean()))
        assert 0 < row["mean"] <= row["max"] <= document["colour_scale"]["max"]
        with Image.open(row["map"]) as heat:
            assert heat.width >= 64
    assert Path(document["sheet"]).is_file()
    written = json.loads((Path(document["folder"]) / "attention.json").read_text(encoding="utf-8"))
    assert written["words"] == document["words"]


def test_the_inspected_picture_is_the_one_generate_makes(cli: Cli, trained: Path) -> None:
    inspected = cli("inspect-attn", trained, PROMPT, "--seed", 4, "--json").document["picture"]
    (generated,) = cli("generate", trained, PROMPT, "--seed", 4, "--json").document["pictures"]
    with Image.open(inspected) as one, Image.open(generated["path"]) as two:
        assert one.tobytes() == two.tobytes()
    metadata = read_metadata(Path(inspected))
    assert metadata is not None
    assert metadata["seed"] == 4


def test_chosen_words_layers_and_stages(cli: Cli, trained: Path) -> None:
    def inspect(*flags: object) -> dict[str, Any]:
        return cli("inspect-attn", trained, PROMPT, "--word", "{}", "--word", "Beach", *flags, "--json").document

    every, coarse, early = inspect(), inspect("--resolution", 4), inspect("--stage", "embedding")
    assert [row["word"] for row in every["words"]] == ["<toadstool>", "beach"]
    assert set(coarse["layers"]) < set(every["layers"])
    assert coarse["words"][0]["mean"] != every["words"][0]["mean"]
    assert early["stage"] == "embedding"
    assert early["words"][0]["mean"] != every["words"][0]["mean"]


@pytest.mark.parametrize(
    ("flags", "why", "hint"),
    [
        (["--word", "snow"], "no word 'snow'", "beach"),
        (["--resolution", "3"], "resolution 3", "choose one of"),
        (["--stage", "never"], "never", "--help"),
    ],
)
def test_inspections_that_cannot_be_made(cli: Cli, trained: Path, flags: list[str], why: str, hint: str) -> None:
    done = cli("inspect-attn", trained, PROMPT, *flags)
    assert done.code == 2
    assert why in done.err
    assert hint in done.err.splitlines()[-1]
    assert not (trained / "attention").exists()


def test_a_prompt_without_the_concept_cannot_be_inspected(cli: Cli, trained: Path) -> None:
    done = cli("inspect-attn", trained, "a beach")
    assert done.code == 2
    assert "does not name the concept" in done.err


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_names_the_next_command(cli: Cli, project: Path) -> None:
    before = snapshot(project)
    done = cli("status", project)
    assert done.code == 0
    assert "<toadstool>, a mushroom, 5 pictures" in done.out
    assert done.out.splitlines()[-1] == f"next: attnbooth train {project}"
    assert snapshot(project) == before


def test_status_of_an_unfinished_run(cli: Cli, interrupted: Path) -> None:
    done = cli("status", interrupted)
    assert "run 001-attndreambooth: unfinished (embedding, checkpoint attention-000005)" in done.out
    assert done.out.splitlines()[-1] == f"next: attnbooth resume {interrupted}"


def test_status_as_json(cli: Cli, trained: Path) -> None:
    document = cli("status", trained, "--json").document
    assert [document[key] for key in ("schema", "event", "project", "run")] == [
        1, "status", str(trained), "001-attndreambooth",
    ]  # fmt: skip
    assert document["concept"]["stages"] == ["embedding", "attention", "unet"]
    assert (document["pictures"], document["samples"]) == (5, 3)
    assert document["next"].startswith(f"attnbooth generate {trained} ")
    assert document["runs"][0]["status"] == "done"


def test_status_of_several(cli: Cli, trained: Path, tmp_path: Path) -> None:
    done = cli("status", trained, tmp_path / "absent", "--json")
    assert done.code == 2
    one, two = done.document["projects"]
    assert one["project"] == str(trained)
    assert two["error"]["exit_code"] == 2
