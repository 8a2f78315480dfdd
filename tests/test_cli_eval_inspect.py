"""`attnbooth eval`, `inspect-attn` and `status`."""

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


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a photo of a {} on the beach\nan oil painting of a {} in the forest\n", encoding="utf-8")
    return file


# --- eval -------------------------------------------------------------------------------------------------------------


def test_scores_and_what_makes_them_comparable(cli: Cli, trained: Path, prompts: Path) -> None:
    done = cli("eval", trained, "--prompts", prompts, "-n", 2, "--min-identity", -1, "--min-text", -1, "--json")
    assert done.code == 0
    document = done.document
    assert [document[key] for key in ("schema", "event", "project", "run")] == [
        1, "eval", str(trained), "001-attndreambooth",
    ]  # fmt: skip
    assert (document["stage"], document["exit_code"], document["smoke"]) == ("unet", 0, False)
    rows = document["per_prompt"]
    assert [row["prompt"] for row in rows] == prompts.read_text().splitlines()
    assert rows[0]["scored_as"] == "a photo of a mushroom on the beach"
    for score in ("identity", "text"):
        assert all(-1 <= row[score] <= 1 for row in rows)
        assert document[score] == pytest.approx(sum(row[score] for row in rows) / 2)
    protocol = document["protocol"]
    assert (protocol["judge"], protocol["references"], protocol["prompts"]) == ("tiny", 5, 2)
    assert (protocol["pictures_per_prompt"], protocol["seeds"]) == (2, [0, 1])
    assert protocol["name"]
    assert len(document["pictures"]) == 4
    (report,) = (trained / "eval").glob("*/scores.json")
    written = json.loads(report.read_text(encoding="utf-8"))
    assert (written["identity"], written["per_prompt"]) == (document["identity"], rows)


def test_the_training_pictures_look_most_like_themselves(
    cli: Cli, trained: Path, prompts: Path, tmp_path: Path
) -> None:
    """The judge really looks: the same pictures score higher against themselves than against another concept's."""
    from attnbooth_cli.engine.base_models import resolve_judge
    from attnbooth_cli.engine.devices import resolve_device
    from attnbooth_cli.engine.metrics import identity_score, image_features, load_judge
    from attnbooth_cli.project.pictures import load
    from tests.conftest import EXAMPLE

    judge = load_judge(resolve_judge("tiny"), resolve_device("cpu"))
    cats, mushrooms = (
        image_features(judge, [load(path) for path in sorted((EXAMPLE / name).iterdir())])
        for name in ("cat", "mushroom")
    )
    assert identity_score(cats, cats) > identity_score(cats, mushrooms) + 0.1


def test_gates(cli: Cli, trained: Path, prompts: Path) -> None:
    prompts.write_text(PROMPT)
    flags = ("--prompts", prompts, "-n", 1)
    both = cli("eval", trained, *flags, "--min-identity", 0.999, "--min-text", 0.999, "--json")
    assert both.code == 3
    scores = both.document
    assert scores["exit_code"] == scores["error"]["exit_code"] == 3
    assert "identity is" in scores["error"]["message"]
    assert "text is" in scores["error"]["message"]
    passed, missed = ("--min-text", scores["text"] - 0.01), ("--min-identity", scores["identity"] + 0.05)
    done = cli("eval", trained, *flags, *passed, *missed)
    assert done.code == 3
    assert "0.0500 below the gate" in done.err
    assert "text is" not in done.err
    assert f"identity {scores['identity']:.4f}   text {scores['text']:.4f}" in done.out  # shown all the same
    assert len(list((trained / "eval").iterdir())) == 2  # nothing is overwritten


def test_a_judge_that_is_not_there(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for judge in (tmp_path / "absent", "some-body/some-judge"):
        done = cli("eval", trained, "-n", 1, "--clip", judge)
        assert done.code == 7, judge
        assert "--clip" in done.err
    assert not (trained / "eval").exists()


def test_several_projects_in_one_document(cli: Cli, trained: Path, tmp_path: Path, prompts: Path) -> None:
    absent = tmp_path / "absent"
    prompts.write_text(PROMPT)
    done = cli("eval", absent, trained, "--prompts", prompts, "-n", 1, "--json")
    assert done.code == 2
    first, second = done.document["results"]
    assert (first["project"], first["error"]["exit_code"]) == (str(absent), 2)
    assert second["project"] == str(trained)
    assert -1 <= second["identity"] <= 1


def test_a_prompt_without_the_concept_cannot_be_scored(cli: Cli, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a beach\n")
    done = cli("eval", trained, "--prompts", file)
    assert done.code == 2
    assert "does not name the concept" in done.err


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
