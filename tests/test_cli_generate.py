"""`attnbooth generate`: pictures from prompts, how they are named, and what they carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnbooth_cli.project.samples import read_metadata
from tests.conftest import Cli, snapshot

BEACH = "a photo of a {} on the beach"
FOREST = "an oil painting of a {} in the forest"


def pixels(path: str | Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int16)


def made(cli: Cli, project: Path, *arguments: object) -> list[dict[str, Any]]:
    """The pictures of a `generate --json` that must succeed."""
    done = cli("generate", project, *arguments, "--json")
    assert done.code == 0, done.err
    return list(done.document["pictures"])


def test_pictures_are_numbered_by_seed_and_carry_how_they_were_made(cli: Cli, trained: Path) -> None:
    flags = ("-n", 2, "--seed", 7, "--steps", 2, "--guidance", 3.5, "--negative", "snow", "--scheduler", "ddim")
    found = made(cli, trained, BEACH, FOREST, *flags, "--size", "64x48")
    assert [(Path(row["path"]).name, row["prompt"], row["seed"]) for row in found] == [
        ("a-photo-of-a-mushroom-on-the-beach-7.png", BEACH, 7),
        ("a-photo-of-a-mushroom-on-the-beach-8.png", BEACH, 8),
        ("an-oil-painting-of-a-mushroom-in-the-forest-7.png", FOREST, 7),
        ("an-oil-painting-of-a-mushroom-in-the-forest-8.png", FOREST, 8),
    ]
    assert {Path(row["path"]).parent for row in found} == {trained / "samples"}
    assert pixels(found[0]["path"]).shape == (48, 64, 3)
    metadata = read_metadata(Path(found[1]["path"]))
    assert metadata is not None
    expected = {
        "schema": 1,
        "prompt": "a photo of a <toadstool> mushroom on the beach",
        "seed": 8,
        "steps": 2,
        "guidance": 3.5,
        "negative": "snow",
        "scheduler": "ddim",
        "width": 64,
        "height": 48,
        "stage": "unet",
        "run": "001-attndreambooth",
        "base": "tiny",
        "smoke": False,
    }
    assert expected.items() <= metadata.items()


def test_the_base_models_own_defaults(cli: Cli, trained: Path) -> None:
    done = cli("generate", trained, BEACH, "--json")
    settings = done.document["settings"]
    assert (settings["steps"], settings["guidance"], settings["scheduler"]) == (25, 4.0, "dpm++")
    assert (settings["width"], settings["height"]) == (64, 64)
    assert done.document["run"] == "001-attndreambooth"
    assert done.document["project"] == str(trained)
    assert done.document["grid"] is None


def test_nothing_is_ever_overwritten(cli: Cli, trained: Path) -> None:
    first = made(cli, trained, BEACH, "--steps", 1, "--grid")[0]["path"]
    before = snapshot(trained)
    second = made(cli, trained, BEACH, "--steps", 2, "--grid")[0]["path"]
    assert Path(second).name == Path(first).stem + "-2.png"
    after = snapshot(trained)
    assert after.items() > before.items()
    assert len(after) == len(before) + 2


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(cli: Cli, trained: Path) -> None:
    """Users complain that the same seed gives another picture when more of them are made at once."""
    batch = made(cli, trained, BEACH, FOREST, "-n", 6, "--seed", 3, "--steps", 4)
    for row in (batch[0], batch[5], batch[8]):
        alone = made(cli, trained, row["prompt"], "--seed", row["seed"], "--steps", 4)
        assert np.abs(pixels(row["path"]) - pixels(alone[0]["path"])).max() <= 1


def test_what_changes_the_picture(cli: Cli, trained: Path) -> None:
    def picture(*flags: object) -> bytes:
        return pixels(made(cli, trained, BEACH, "--steps", 2, *flags)[0]["path"]).tobytes()

    base = picture()
    assert picture() == base
    assert picture("--seed", 0, "--negative", "") == base
    for flags in (("--seed", 1), ("--guidance", 1), ("--negative", "snow"), ("--stage", "embedding"), ("--steps", 3)):
        assert picture(*flags) != base, flags


def test_every_scheduler_makes_its_own_picture(cli: Cli, trained: Path) -> None:
    names = cli("generate", trained, BEACH, "--scheduler", "?").err.splitlines()[-1].split(": ")[-1].split(", ")
    assert names == ["dpm++", "ddim", "euler", "euler-a", "unipc", "pndm"]
    found = {}
    for name in names:
        (row,) = made(cli, trained, BEACH, "--steps", 5, "--scheduler", name)
        found[name] = pixels(row["path"])
        assert found[name].std() > 5, name
    assert len({picture.tobytes() for picture in found.values()}) == len(names)
    again = made(cli, trained, BEACH, "--steps", 5, "--scheduler", "euler-a")  # it draws noise at every step
    assert (pixels(again[0]["path"]) == found["euler-a"]).all()


def test_every_stage_can_be_asked_for(cli: Cli, trained: Path) -> None:
    pictures = {
        stage: pixels(made(cli, trained, BEACH, "--steps", 3, "--stage", stage)[0]["path"]).tobytes()
        for stage in ("embedding", "attention", "unet")
    }
    assert len(set(pictures.values())) == 3
    assert pixels(made(cli, trained, BEACH, "--steps", 3)[0]["path"]).tobytes() == pictures["unet"]


def test_a_stage_that_was_not_trained(cli: Cli, project: Path) -> None:
    flags = ("--until", "embedding", "--set=train.embedding.steps=1", "--set=train.embedding.batch_size=1")
    assert cli("train", project, *flags).code == 0
    done = cli("generate", project, BEACH, "--stage", "unet")
    assert done.code == 2
    assert "it has embedding" in done.err
    assert made(cli, project, BEACH, "--steps", 1)


def test_the_sheet_of_all_pictures(cli: Cli, trained: Path) -> None:
    done = cli("generate", trained, BEACH, FOREST, "-n", 3, "--steps", 1, "--grid", "--json")
    grid = Path(done.document["grid"])
    with Image.open(grid) as sheet:
        width, height = sheet.size
    assert width > height  # three columns, two rows
    metadata = read_metadata(grid)
    assert metadata is not None
    assert metadata["prompts"] == [BEACH, FOREST]
    plain = cli("generate", trained, BEACH, "--steps", 1, "--grid")
    assert [Path(line).name for line in plain.out.splitlines()] == [
        "a-photo-of-a-mushroom-on-the-beach-0-2.png",
        "grid-a-photo-of-a-mushroom-on-the-beach-2.png",
    ]


def test_another_folder(cli: Cli, trained: Path, tmp_path: Path) -> None:
    before = snapshot(trained)
    (row,) = made(cli, trained, BEACH, "--steps", 1, "--out", tmp_path / "new" / "folder")
    assert Path(row["path"]).parent == tmp_path / "new" / "folder"
    assert snapshot(trained) == before


def test_a_file_where_the_folder_should_be(cli: Cli, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    done = cli("generate", trained, BEACH, "--steps", 1, "--out", tmp_path / "out")
    assert done.code == 6
    assert (tmp_path / "out").read_text() == "mine"


def test_prompts_from_a_file(cli: Cli, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"\ufeff# mine\n\n  {FOREST}  \r\na <toadstool> mushroom\n", encoding="utf-8")
    found = made(cli, trained, BEACH, "--prompts", file, "--steps", 1)
    assert [row["prompt"] for row in found] == [BEACH, FOREST, "a <toadstool> mushroom"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "no prompt"),
        (b"# only\n\n", "no prompt"),
        (b"\xff\xfe", "UTF-8"),
        (b"a {}\na \x1b[2J {}\n", "a control character in line 2"),
    ],
)
def test_prompt_files_that_will_not_do(
    cli: Cli, trained: Path, tmp_path: Path, content: bytes | None, why: str
) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    done = cli("generate", trained, "--prompts", file)
    assert done.code == 2
    assert str(file) in done.err
    assert why in done.err


def test_the_literal_token_works_too(cli: Cli, trained: Path) -> None:
    one = made(cli, trained, BEACH, "--steps", 2)[0]["path"]
    two = made(cli, trained, "a photo of a <toadstool> mushroom on the beach", "--steps", 2)[0]["path"]
    assert (pixels(one) == pixels(two)).all()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a photo of a mushroom"], "does not name the concept"),
        ([BEACH, "a beach"], "does not name the concept"),
        ([""], "is empty"),
        ([], "no prompt was given"),
        ([BEACH, "--size", "64"], "--size must look like"),
        ([BEACH, "--size", "60x64"], "multiples of 8"),
        ([BEACH, "--size", "8x8"], "between 32 and 4096"),
        ([BEACH, "--scheduler", "heun"], "no scheduler 'heun'"),
        ([BEACH, "--steps", "0"], "steps"),
        ([BEACH, "--guidance", "-1"], "guidance"),
        ([BEACH, "--guidance", "nan"], "guidance"),
        ([BEACH, "--seed", "-1"], "seed"),
        ([BEACH, "-n", "0"], "-n"),
        ([BEACH, "--device", "potato"], "no device 'potato'"),
    ],
)
def test_requests_that_cannot_be_met(cli: Cli, trained: Path, arguments: list[str], why: str) -> None:
    """Among them: a prompt without the token, with which a concept "loads and does nothing", as users complain."""
    before = snapshot(trained)
    done = cli("generate", trained, *arguments)
    assert done.code == 2
    assert why in done.err
    assert snapshot(trained) == before


def test_a_device_that_is_not_there(cli: Cli, trained: Path) -> None:
    done = cli("generate", trained, BEACH, "--device", "cuda:7")
    assert done.code == 6
    assert "cuda:7 is not available" in done.err


def test_a_prompt_whose_end_is_cut_off_is_made_with_a_warning(cli: Cli, trained: Path) -> None:
    from attnbooth_cli.engine.base_models import resolve
    from attnbooth_cli.engine.families import load_tokenizer

    length = load_tokenizer(resolve("tiny")).model_max_length
    prompt = "a photo of a {} " + "on the beach " * (length // 3 + 2) + "in the snow"
    done = cli("generate", trained, prompt, "--steps", 1)
    assert done.code == 0
    assert "does not see: " in done.err
    assert "in the snow" in done.err


def test_a_prompt_whose_concept_is_cut_off_is_refused(cli: Cli, trained: Path) -> None:
    done = cli("generate", trained, BEACH, "a photo " + "on the beach " * 30 + "of a {}", "--steps", 1)
    assert done.code == 2
    assert "the concept is cut off" in done.err
    assert len(list((trained / "samples").iterdir())) == 3  # not even the first prompt was begun


def test_words_the_base_model_does_not_know_are_pointed_out(cli: Cli, trained: Path) -> None:
    prompt = "a zebra beside a {} on a beach"
    for command in (
        ("generate", trained, prompt, "--steps", 1, "-n", 2),
        ("inspect-attn", trained, prompt, "--steps", 1),
    ):
        done = cli(*command)
        assert done.code == 0
        assert done.err.count("note: the base model does not know 'zebra'\n") == 1


def test_before_training(cli: Cli, project: Path) -> None:
    before = snapshot(project)
    for command in (("generate", project, BEACH), ("eval", project), ("inspect-attn", project, BEACH)):
        done = cli(*command)
        assert done.code == 2
        assert "no trained concept" in done.err
        assert done.err.splitlines()[-1] == f"hint: attnbooth train {project}"
    assert snapshot(project) == before


def test_all_black_pictures_are_pointed_out(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users complain of black pictures without a word about the numbers that overflowed."""
    from attnbooth_cli.engine import generation

    def black(*_: object) -> list[tuple[int, Image.Image]]:
        return [(0, Image.new("RGB", (64, 64)))]

    monkeypatch.setattr(generation, "sample_missing", black)
    done = cli("generate", trained, BEACH)
    assert "all black" in done.err
    flags = [word for word in done.err.split() if word.startswith("--")]
    assert flags
    assert all(flag in cli("generate", "--help").out for flag in flags)


def test_a_project_can_be_moved(cli: Cli, trained: Path, tmp_path: Path) -> None:
    before = pixels(made(cli, trained, BEACH, "--steps", 2)[0]["path"])
    moved = trained.rename(tmp_path / "elsewhere")
    (row,) = made(cli, moved, BEACH, "--steps", 2)
    assert Path(row["path"]).parent == moved / "samples"
    assert (pixels(row["path"]) == before).all()
    assert cli("resume", moved).code == 0


# --- going on after an interruption -----------------------------------------------------------------------------------


def test_only_what_is_missing_is_made(cli: Cli, trained: Path, tmp_path: Path) -> None:
    """Pictures that are there stay as they are, and the others come out as they would have, bit for bit."""
    prompts = ("a {} on the beach", "a {}", "a {} in the snow")
    flags = (*prompts, "-n", 5, "--steps", 2, "--out", tmp_path / "out", "--json")
    whole = [Path(picture["path"]) for picture in cli("generate", trained, *flags).document["pictures"]]
    assert len(set(whole)) == 15
    before = {path: path.read_bytes() for path in whole}
    for path in whole[3:9]:
        path.unlink()
    whole[0].write_bytes(before[whole[0]][:-40])  # cut off, so it is none
    again = cli("generate", trained, *flags, "--missing", "--grid").document
    made = [Path(picture["path"]) for picture in again["pictures"]]
    assert len(set(made)) == 15
    assert made[1:3] == whole[1:3]
    for path, original in zip(made, whole, strict=True):
        assert path.read_bytes() == before[original]
    assert Path(again["grid"]).is_file()
    third = cli("generate", trained, *flags, "--missing").document["pictures"]
    assert [Path(picture["path"]) for picture in third] == made
    other = cli("generate", trained, *flags[:-3], "--out", tmp_path / "out", "--seed", 1, "--missing", "--json")
    assert {picture["seed"] for picture in other.document["pictures"]} == {1, 2, 3, 4, 5}


def test_another_vae_or_text_encoder_than_the_concept_was_trained_on_is_pointed_out(cli: Cli, trained: Path) -> None:
    """Whose own U-Net is in the concept: what else makes its pictures is the base model's."""
    path = trained / "concept" / "concept.json"
    card = json.loads(path.read_text())
    quiet = cli("generate", trained, "a photo of a {}", "--steps=1")
    assert "differs" not in quiet.err
    (vae,) = (name for name in card["base_files"] if name.startswith("vae/") and name.endswith(".safetensors"))
    path.write_text(json.dumps({**card, "base_files": {**card["base_files"], vae: "0" * 64}}))
    done = cli("generate", trained, "a photo of a {}", "--steps=1", "--seed=1")
    assert done.code == 0
    assert f"{vae} differs" in " ".join(done.err.split())
