"""`attnbooth inspect-attn` and `status`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file

from attnbooth_cli.project.samples import read_metadata
from tests.conftest import Cli, snapshot

PROMPT = "a photo of a {} on the beach"

# --- inspect-attn -----------------------------------------------------------------------------------------------------


def test_one_map_a_word(cli: Cli, trained: Path) -> None:
    done = cli("inspect-attn", trained, PROMPT, "--seed", 4, "--steps", 4, "--json")
    assert done.code == 0
    document = done.document
    assert [document[key] for key in ("schema", "event", "project", "run")] == [
        1, "inspect-attn", str(trained), "001-attndreambooth",
    ]  # fmt: skip
    words = {row["word"]: row for row in document["words"]}
    spoken = ["a", "photo", "of", "a (2)", "<toadstool>", "mushroom", "on", "the", "beach"]
    assert list(words) == [*spoken, "[start]", "[end]", "[padding]"]
    assert sum(row["share"] for row in words.values()) == pytest.approx(1)
    assert len(document["layers"]) > 1
    assert document["pooling"]
    maps = load_file(Path(document["folder"]) / "maps.safetensors")
    assert {name for name in maps if "/" not in name} == set(words)
    for word, row in words.items():
        assert row["peak"] == pytest.approx(float(maps[word].max()))
        assert maps[f"steps/{word}"].float().mean(0).numpy() == pytest.approx(maps[word].numpy(), abs=1e-3)
        if word in spoken:
            assert 0 < row["mean"] <= row["peak"] <= document["colour_scale"]["max"]
            with Image.open(Path(document["folder"]) / row["map"]) as heat:
                assert heat.width >= 64
    own, plain = document["views"][::-1]
    assert (own["label"], plain["label"]) == ("after stage unet", "base model")
    assert plain["prompt"] == "a photo of a mushroom on the beach"
    category = next(row for row in plain["words"] if row["word"] == "mushroom")
    assert words["<toadstool>"]["share_in_base"] == category["share"]
    assert 0 < words["<toadstool>"]["overlap_with_category"] < 1
    assert 0 < words["beach"]["overlap_with_base"] < 1
    written = json.loads((Path(document["folder"]) / "attention.json").read_text(encoding="utf-8"))
    assert written["words"] == document["words"]
    with (Path(document["folder"]) / "attention.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["view"], row["word"]) for row in rows[-12:]] == [("after stage unet", word) for word in words]
    assert float(rows[-1]["share"]) == words["[padding]"]["share"]
    for name in ("picture", "sheet", "film", "comparison"):
        assert (Path(document["folder"]) / document[name]).is_file()


def test_the_inspected_picture_is_the_one_generate_makes(cli: Cli, trained: Path) -> None:
    flags = ("--seed", 4, "--steps", 4, "--guidance", 3, "--negative", "snow", "--size", "48x64", "--scheduler", "ddim")
    inspected = cli("inspect-attn", trained, PROMPT, *flags, "--no-base", "--json").document
    inspected = Path(inspected["folder"]) / inspected["picture"]
    (generated,) = cli("generate", trained, PROMPT, *flags, "--json").document["pictures"]
    with Image.open(inspected) as one, Image.open(generated["path"]) as two:
        assert one.size == (48, 64)
        assert one.tobytes() == two.tobytes()
    metadata = read_metadata(inspected)
    assert metadata is not None
    assert metadata["seed"] == 4


def test_chosen_words_layers_and_stages(cli: Cli, trained: Path) -> None:
    def inspect(*flags: object) -> dict[str, Any]:
        words = ("--word", "{}", "--word", "Beach", "--no-base", "--steps", 4)
        return cli("inspect-attn", trained, PROMPT, *words, *flags, "--json").document

    every, coarse, early = inspect(), inspect("--resolution", 4), inspect("--stage", "embedding")
    assert [row["word"] for row in every["words"]] == ["<toadstool>", "beach"]
    assert len(coarse["layers"]) < len(every["layers"])
    assert early["stage"] == "embedding"
    for other in (coarse, early, inspect("--head", 1), inspect("--step-range", "1-2")):
        assert other["words"][0]["share"] != every["words"][0]["share"]


def test_the_unconditional_branch_looks_at_the_negative_prompt(cli: Cli, trained: Path) -> None:
    flags = ("--branch", "unconditional", "--negative", "snow", "--steps", 3, "--no-base")
    done = cli("inspect-attn", trained, PROMPT, *flags, "--json")
    assert [row["word"] for row in done.document["words"]] == ["snow", "[start]", "[end]", "[padding]"]


def test_through_stages_and_other_projects(cli: Cli, trained: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    flags = ("--stages", "--beside", other, "--beside", other, "--steps", 3)
    done = cli("inspect-attn", trained, "a photo of a <toadstool> mushroom on the beach", *flags)
    assert done.code == 0
    assert max(len(line) for line in done.out.splitlines() if not line.startswith("/")) <= 80
    document = json.loads(next(trained.glob("attention/*/attention.json")).read_text(encoding="utf-8"))
    labels = [view["label"] for view in document["views"]]
    assert labels == ["base model", "after stage embedding", "after stage attention", "after stage unet", "other",
                      "other (2)"]  # fmt: skip
    last, copied = document["views"][3], document["views"][4]
    assert last["words"] == [{**row, "map": last["words"][k]["map"]} for k, row in enumerate(copied["words"])]
    assert document["views"][1]["words"] != last["words"]
    maps = load_file(next(trained.glob("attention/*/maps.safetensors")))
    assert "views/base model/mushroom" in maps
    words = ("--word", "{}", "--word", "photo")
    shared = cli("inspect-attn", trained, "--picture", "1-grass.png", "--beside", other, *words, "--json").document
    names = [[row["word"] for row in view["words"]] for view in shared["views"]]
    assert names == [["mushroom", "photo"], ["<toadstool>", "photo"], ["<toadstool>", "photo"]]


def test_an_existing_picture(cli: Cli, trained: Path) -> None:
    name = sorted(path.name for path in (trained / "images").iterdir())[0]
    document = cli("inspect-attn", trained, "--picture", name, "--json").document
    assert document["prompt"] == "a photo of a <toadstool> mushroom"
    assert len(document["timesteps"]) == 10
    assert (document["source"], document["steps"], document["scheduler"]) == (name, None, None)
    assert document["views"][0]["label"] == "base model"
    made = Path(document["folder"]) / document["picture"]
    with Image.open(made) as shown, Image.open(trained / "images" / name) as original:
        difference = ImageChops.difference(shown, original.convert("RGB").resize(shown.size))
    assert max(ImageStat.Stat(difference).mean) < 8


@pytest.mark.parametrize(
    ("flags", "why", "hint"),
    [
        (["--word", "snow"], "no word 'snow'", "beach"),
        (["--resolution", "3"], "resolution 3", "choose one of"),
        (["--stage", "never"], "never", "--help"),
        (["--stage", "unet", "--stages"], "--stages shows every stage", "leave out"),
        (["--head", "99"], "head 99", "heads are 0 to"),
        (["--step-range", "9-2"], "'9-2'", "count from 1"),
        (["--step-range", "99"], "no step 99", "the last one is"),
        (["--step-range", "1-99"], "no step 99", "the last one is 25"),
        (["--branch", "unconditional", "--guidance", "1"], "without guidance", "above 1"),
        (["--picture", "absent.png"], "no picture absent.png", "training picture: "),
        (["--picture", "absent.png", "--steps", "3"], "for pictures that are made", "--picture"),
        (["--beside", "nowhere"], "no folder nowhere", "init"),
    ],
)
def test_inspections_that_cannot_be_made(cli: Cli, trained: Path, flags: list[str], why: str, hint: str) -> None:
    done = cli("inspect-attn", trained, PROMPT, *flags)
    assert done.code == 2
    assert why in done.err
    assert hint in done.err.splitlines()[-1]
    assert not (trained / "attention").exists()


def test_an_inspection_takes_a_free_name_and_appears_whole(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbooth_cli.engine import findings

    flags = ("inspect-attn", trained, "a {}", "--steps", 1, "--no-base")
    assert cli(*flags).code == 0
    (first,) = (trained / "attention").iterdir()
    kept = snapshot(first)

    def full(_: object) -> str:
        assert [path.name for path in (trained / "attention").glob("a-*-2")] == ["a-mushroom-0-2"]  # it is claimed
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(findings, "table", full)
        assert cli(*flags).code == 6
    assert [path.name for path in (trained / "attention").iterdir()] == ["a-mushroom-0"]
    assert cli(*flags).code == 0
    assert sorted(path.name for path in (trained / "attention").iterdir()) == ["a-mushroom-0", "a-mushroom-0-2"]
    assert snapshot(first) == kept
    assert (first / "maps.safetensors").stat().st_mode & 0o777 == (first / "attention.json").stat().st_mode & 0o777


def test_no_prompt_and_no_picture(cli: Cli, trained: Path) -> None:
    done = cli("inspect-attn", trained)
    assert (done.code, done.err.splitlines()[0]) == (2, "error: no prompt was given")


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
