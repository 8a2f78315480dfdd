"""Where settings come from, which goes before which, and that a wrong one is named instead of ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EXAMPLE, Cli, pictures, snapshot


def settings(cli: Cli, project: Path, *flags: object) -> dict[str, tuple[Any, str]]:
    """What `--dry-run --json` says: value and origin by key."""
    done = cli("train", project, "--dry-run", "--json", *flags)
    assert done.code == 0, done.err
    return {key: (entry["value"], entry["origin"]) for key, entry in done.document["settings"].items()}


def declare(project: Path, toml: str) -> int:
    """Appends to the manifest; returns the number of the first new line."""
    path = project / "attnbooth.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + toml, encoding="utf-8")
    return text.count("\n") + 1


@pytest.fixture
def user_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "mine.toml"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setenv("ATTNBOOTH_CONFIG", str(path))
    return path


def test_each_layer_goes_before_the_one_below(
    cli: Cli, project: Path, user_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "train.unet.steps"
    assert settings(cli, project)[key] == (500, "method attndreambooth")
    value, origin = settings(cli, project, "--fast")[key]
    assert (value, origin.startswith("--fast")) == (200, True)
    user_config.write_text("[train.unet]\nsteps = 41\n")
    assert settings(cli, project, "--fast")[key] == (41, "user config")
    declare(project, "[train.unet]\nsteps = 42\n")
    assert settings(cli, project, "--fast")[key] == (42, "attnbooth.toml")
    monkeypatch.setenv("ATTNBOOTH_TRAIN_UNET_STEPS", "43")
    assert settings(cli, project, "--fast")[key] == (43, "environment")
    assert settings(cli, project, "--fast", "--set", f"{key}=44")[key] == (44, "--set")
    assert settings(cli, project, "--set", f"{key}=44", "--smoke")[key] == (2, "--smoke")


def test_flags_go_before_the_environment(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBOOTH_TRAIN_SEED", "1")
    monkeypatch.setenv("ATTNBOOTH_TRAIN_PRECISION", "bf16")
    found = settings(cli, project, "--seed", 2)
    assert found["train.seed"] == (2, "command line")
    assert found["train.precision"] == ("bf16", "environment")


def test_dry_run_lists_every_setting_with_its_origin_and_does_nothing(
    cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users complain that they learn of an ignored setting from the loss curve, hours later."""
    monkeypatch.setenv("ATTNBOOTH_CACHE", str(tmp_path / "cache"))  # where no run has been timed yet
    before = snapshot(project)
    done = cli("train", project, "--dry-run", "--set", "train.sample_every=5")
    rows = [line.split() for line in done.out.splitlines()]
    assert ["train.sample_every", "5", "--set"] in rows
    assert ["train.resolution", "64", "base", "model", "tiny"] in rows
    assert ["train.embedding.mean_weight", "0.1", "method", "attndreambooth"] in rows
    assert done.err == ""
    assert {row[0] for row in rows} == {*settings(cli, project), "memory:", "time:"}
    assert snapshot(project) == before


def test_fast_is_the_papers_fast_mode(cli: Cli, project: Path) -> None:
    plain, fast = settings(cli, project), settings(cli, project, "--fast")
    changed = {key: value for key, (value, _) in fast.items() if plain[key][0] != value}
    assert set(changed) == {f"train.unet.{key}" for key in ("steps", "learning_rate", "batch_size")}
    assert (changed["train.unet.steps"], changed["train.unet.batch_size"]) == (200, 4)
    assert changed["train.unet.learning_rate"] > plain["train.unet.learning_rate"][0]


def test_a_manifest_that_overrides_a_named_preset_is_warned_of(cli: Cli, project: Path) -> None:
    declare(project, "[train.unet]\nsteps = 42\n")
    done = cli("train", project, "--fast", "--dry-run", "--json")
    (warning,) = done.document["warnings"]
    assert re.fullmatch(r"train\.unet\.steps = 42 \(attnbooth\.toml\) overrides --fast.* \(200\)", warning)
    assert f"note: {warning}" in done.err
    assert cli("train", project, "--dry-run", "--json").document["warnings"] == []


def test_the_regulariser_can_be_switched_off(cli: Cli, project: Path) -> None:
    found = settings(cli, project, "--set", "train.regulariser=false")
    for stage in ("embedding", "attention", "unet"):
        assert found[f"train.{stage}.mean_weight"][0] == found[f"train.{stage}.variance_weight"][0] == 0


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "offset", "messages"),
    [
        ("[train.unet]\nstep = 3\n", 1, ["unknown key train.unet.step", "did you mean steps?"]),
        ("[train.unett]\nsteps = 3\n", 0, ["unknown key train.unett", "did you mean unet?"]),
        ("[traín]\n", None, ["not valid TOML"]),
        ("[extra]\nx = 1\n", 0, ["unknown key extra"]),
        ("[train.unet]\nsteps = '3'\n", 1, ["train.unet.steps", "valid integer", "'3'"]),
        ("[train.unet]\nsteps = 3.5\n", 1, ["train.unet.steps", "integer", "3.5"]),
        ("[train.unet]\nsteps = 0\n", 1, ["train.unet.steps", "greater than 0"]),
        ("[train.unet]\nlearning_rate = inf\n", 1, ["train.unet.learning_rate", "finite"]),
        ("[train.unet]\nenabled = 1\n", 1, ["train.unet.enabled", "boolean"]),
        ("[train.unet]\nsteps = \n", None, ["not valid TOML", "line"]),
        ("[concept]\nname = 'again'\n", None, ["not valid TOML", "line"]),
    ],
)
def test_mistakes_in_the_manifest(cli: Cli, project: Path, toml: str, offset: int | None, messages: list[str]) -> None:
    """Users complain that a misspelt or misplaced setting is silently ignored: it must be named, with its line."""
    first = declare(project, toml)
    before = snapshot(project)
    done = cli("train", project)
    assert done.code == 2
    assert str(project / "attnbooth.toml") in done.err
    for message in messages:
        assert message in done.err
    if offset is not None:
        assert f"(line {first + offset})" in done.err
    assert snapshot(project) == before


def test_all_mistakes_are_shown_at_once(cli: Cli, project: Path) -> None:
    declare(project, "[train.unet]\nstep = 3\n[train.attention]\nlearning_rat = 1.0\nsteps = -1\n")
    done = cli("train", project)
    for message in ("train.unet.step ", "train.attention.learning_rat ", "train.attention.steps "):
        assert message in done.err


def test_mistakes_in_the_users_config(cli: Cli, project: Path, user_config: Path) -> None:
    user_config.write_text("[train]\n\n[train.unet]\nstesp = 41\n")
    done = cli("train", project)
    assert done.code == 2
    assert str(user_config) in done.err
    assert "unknown key train.unet.stesp (line 4), did you mean steps?" in done.err


@pytest.mark.parametrize(
    ("variable", "value", "messages"),
    [
        ("ATTNBOOTH_TRAIN_UNET_STEP", "3", ["ATTNBOOTH_TRAIN_UNET_STEP", "did you mean ATTNBOOTH_TRAIN_UNET_STEPS?"]),
        ("ATTNBOOTH_TRAIN_UNET_STEPS", "many", ["ATTNBOOTH_TRAIN_UNET_STEPS", "integer", "'many'"]),
        ("ATTNBOOTH_TRAIN_PRECISION", "fp8", ["ATTNBOOTH_TRAIN_PRECISION", "'fp16'", "'fp8'"]),
    ],
)
def test_mistakes_in_the_environment(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, messages: list[str]
) -> None:
    monkeypatch.setenv(variable, value)
    done = cli("train", project, "--dry-run")
    assert done.code == 2
    for message in messages:
        assert message in done.err


@pytest.mark.parametrize(
    ("assignment", "messages"),
    [
        ("train.unet.step=3", ["'train.unet.step'", "did you mean train.unet.steps?"]),
        ("unet.steps=3", ["'unet.steps'", "did you mean train.unet.steps?"]),
        ("train.unet.steps", ["expected KEY=VALUE"]),
        ("train.unet.steps=3.5", ["--set train.unet.steps=3.5", "integer"]),
        ("train.unet.steps=", ["integer"]),
        ("train.resolution=100", ["multiple of 8"]),
        ("train.prompt=a photo", ["must contain {} exactly once"]),
        ("train.method=other", ["no method 'other'", "attndreambooth"]),
        ("train.augmentation=none2", ["'published'"]),
    ],
)
def test_mistakes_in_assignments(cli: Cli, project: Path, assignment: str, messages: list[str]) -> None:
    done = cli("train", project, "--set", assignment)
    assert done.code == 2
    for message in messages:
        assert message in done.err


def test_leaving_every_stage_out_is_refused(cli: Cli, project: Path) -> None:
    flags = [f"--set=train.{stage}.enabled=false" for stage in ("embedding", "attention", "unet")]
    done = cli("train", project, *flags)
    assert done.code == 2
    assert "every stage is disabled" in done.err


def test_a_training_prompt_that_does_not_fit_is_refused(cli: Cli, project: Path) -> None:
    prompt = "a photo of " + "the beach and " * 30 + "a {}"
    for more in ((), ("--set", "train.regulariser=false")):  # without which nothing else would notice
        done = cli("train", project, "--set", f"train.prompt={prompt}", *more)
        assert done.code == 2
        assert "cut off" in done.err
    only_the_token = "photo " * 74 + "{}"  # and not the category that the regulariser compares it with
    assert cli("train", project, "--set", f"train.prompt={only_the_token}").code == 2
    assert not (project / "runs").exists()  # nothing was begun that would stand in the way of a shorter one


def test_words_of_a_training_prompt_that_do_not_fit_are_named(cli: Cli, project: Path) -> None:
    prompt = "a photo of a {} " + "the beach and " * 30 + "a castle"
    flags = ("--until", "embedding", "--set=train.embedding.steps=1", "--set=train.embedding.batch_size=1")
    done = cli("train", project, "--set", f"train.prompt={prompt}", *flags)
    assert done.code == 0
    assert "does not see" in done.err
    assert "castle" in done.err


def test_the_regulariser_needs_the_categorys_word(cli: Cli, project: Path) -> None:
    flags = ("--method", "textual-inversion", "--set", "train.prompt=a photo of a {}")
    done = cli("train", project, *flags, "--set", "train.embedding.mean_weight=0.1", "--dry-run")
    assert done.code == 2
    assert "it compares [V] with the category's word" in done.err


# --- the manifest's own rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["../images", "/tmp", "a/../../images", "~/images", "C:\\images", "", "..\\images"])
def test_the_pictures_cannot_be_outside_the_project(cli: Cli, project: Path, images: str) -> None:
    path = project / "attnbooth.toml"
    path.write_text(path.read_text().replace('images = "images"', f"images = '{images}'"))
    for command in (("train", project), ("train", project, "--dry-run"), ("status", project)):
        done = cli(*command)
        assert done.code == 2
        assert "concept.images (line " in done.err
        assert "inside the project" in done.err


def test_links_out_of_the_project_are_refused(cli: Cli, project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    link = project / "images" / "secret.png"
    link.symlink_to(next((EXAMPLE / "cat").iterdir()))
    done = cli("train", project)
    assert done.code == 2
    assert f"{link} leads out of the project" in done.err
    link.unlink()
    (project / "images").rename(tmp_path / "outside" / "images")
    (project / "images").symlink_to(tmp_path / "outside" / "images")
    done = cli("train", project)
    assert done.code == 2
    assert "leads out of the project" in done.err


def test_the_images_folder_may_be_gone(cli: Cli, project: Path) -> None:
    (project / "images").rename(project / "elsewhere")
    done = cli("train", project)
    assert done.code == 2
    assert "images does not exist" in done.err


def test_a_token_or_category_edited_badly(cli: Cli, project: Path) -> None:
    path = project / "attnbooth.toml"
    path.write_text(path.read_text().replace('"<toadstool>"', '"toadstool"').replace('"mushroom"', '"mush_room"'))
    done = cli("train", project)
    assert done.code == 2
    assert "concept.token (line 7) must look like <my-cat>" in done.err
    assert "concept.category (line 6) must be a noun" in done.err


def test_a_newer_manifest_is_left_alone(cli: Cli, project: Path) -> None:
    path = project / "attnbooth.toml"
    path.write_text(path.read_text().replace("schema = 1", "schema = 2") + "[new]\nx = 1\n")
    done = cli("train", project)
    assert done.code == 2
    assert "schema 2" in done.err
    assert "upgrade" in done.err


def test_a_dry_run_needs_a_project(cli: Cli, tmp_path: Path) -> None:
    root = pictures(tmp_path / "cat")
    before = snapshot(root)
    done = cli("train", root, "--dry-run")
    assert done.code == 2
    assert "attnbooth init" in done.err
    assert snapshot(root) == before


def test_a_named_configuration_that_is_missing_is_refused(cli: Cli, project: Path, user_config: Path) -> None:
    user_config.unlink()
    outcome = cli("train", project, "--dry-run")
    assert outcome.code == 2
    assert "ATTNBOOTH_CONFIG" in outcome.err
