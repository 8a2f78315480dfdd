"""The page of `generate --report`: every picture, and the command that makes it again."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnbooth_cli.project.shell import generate_command
from attnbooth_cli.reports import page
from tests.browser import check_page, needs_chromium, opened
from tests.conftest import Cli

BEACH = "a photo of a {} on the beach"
HOSTILE = "-a {} </script><script>alert(1)</script> \"quoted\" 'it' $HOME `id` \\ \N{CAT FACE}"
OPTIONS: dict[str, Any] = {
    "seed": 0, "steps": 5, "guidance": 4.0, "width": 64, "height": 64, "scheduler": "dpm++", "negative": "",
    "stage": "unet",
}  # fmt: skip


def pixels(path: str | Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int16)


@needs_chromium
def test_a_copied_command_makes_exactly_that_picture_again(cli: Cli, trained: Path, browser: Any) -> None:
    flags = ("--steps", 3, "--guidance", 2.75, "--negative", "snow, 'ice'", "--scheduler", "euler-a", "--size", "64x48")
    done = cli("generate", trained, BEACH, "an {}", "-n", 2, "--seed", 7, *flags, "--stage", "attention", "--report",
               "--json")  # fmt: skip
    assert done.code == 0, done.err
    path = Path(done.document["report"])
    assert path == trained / "samples" / "report-a-photo-of-a-mushroom-on-the-beach.html"
    check_page(browser, path)
    with opened(browser, path) as found:
        assert found.page.locator("section h2").all_inner_texts() == [BEACH, "an {}"]
        assert found.page.locator(".card img").count() == 4
        assert found.page.locator(".card.pixelated").count() == 4
        found.page.locator("section").nth(0).locator("button[data-copy]").nth(1).click()
        command = shlex.split(found.page.evaluate("navigator.clipboard.readText()"))
        assert "Seed 8" in found.page.locator(".card figcaption").nth(1).inner_text()
        assert found.page.locator("#filter").count() == 0  # two prompts need no box
    assert command[:4] == ["attnbooth", "generate", str(trained), BEACH]
    again = cli(*command[1:])
    assert again.code == 0, again.err
    assert np.abs(pixels(again.out.strip()) - pixels(done.document["pictures"][1]["path"])).max() <= 1


def test_without_the_option_there_is_no_page_and_none_is_overwritten(cli: Cli, trained: Path, tmp_path: Path) -> None:
    plain = cli("generate", trained, "a {}", "--steps", 1, "--json")
    assert plain.document["report"] is None
    assert not list((trained / "samples").glob("*.html"))
    lines = [cli("generate", trained, "a {}", "--steps", 1, "--report").out.splitlines()[-1] for _ in range(2)]
    assert [Path(line).name for line in lines] == ["report-a-mushroom.html", "report-a-mushroom-2.html"]
    elsewhere = cli("generate", trained, "a {}", "--steps", 1, "--report", "--out", tmp_path / "out")
    assert Path(elsewhere.out.splitlines()[-1]) == tmp_path / "out" / "report-a-mushroom.html"


@needs_chromium
def test_names_and_prompts_are_only_text_and_stay_one_word(
    cli: Cli, trained_once: Path, tmp_path: Path, browser: Any
) -> None:
    root = Path(shutil.copytree(trained_once, tmp_path / "it's <b>my</b> \N{MUSHROOM}; touch x"))
    flags = ("--steps", 1, "--negative", "--no <i>", "--report", "--json", "--device", "cpu")
    done = cli("generate", *flags, "--", root, HOSTILE, "a {}")
    assert done.code == 0, done.err
    check_page(browser, Path(done.document["report"]))
    with opened(browser, Path(done.document["report"])) as found:
        assert found.page.locator("main b, main i, main script, [onclick], [onerror], [style]").count() == 0
        assert found.page.locator("h2").all_inner_texts() == [HOSTILE, "a {}"]
        commands = [
            shlex.split(found.page.locator("button[data-copy]").nth(number).get_attribute("data-copy"))
            for number in range(2)
        ]
    assert all("--device" in command for command in commands)
    for command, row in zip(commands, done.document["pictures"], strict=True):
        again = cli(*command[1:])
        assert again.code == 0, again.err
        assert np.abs(pixels(again.out.strip()) - pixels(row["path"])).max() <= 1


@needs_chromium
def test_many_prompts_have_a_box_to_find_one(cli: Cli, trained: Path, browser: Any) -> None:
    prompts = [f"a {{}} {place}" for place in ("here", "at sea", "at Sea <b>", "up", "down", "in", "out", "there")]
    done = cli("generate", trained, *prompts, "--steps", 1, "--report")
    with opened(browser, Path(done.out.splitlines()[-1])) as found:
        shown = found.page.locator("section:visible h2")
        assert shown.all_inner_texts() == prompts
        found.page.get_by_label("Prompts with").fill("SEA at")
        assert shown.all_inner_texts() == prompts[1:3]
        assert found.text("#found") == "2 of 8"
        found.page.get_by_label("Prompts with").fill("<b>")
        assert shown.all_inner_texts() == prompts[2:3]
        found.page.get_by_label("Prompts with").fill("")
        assert shown.count() == 8


@pytest.mark.parametrize(("side", "count"), [(64, 4), (64, 250), (64, 900), (512, 96), (768, 1), (96, 240)])
def test_pictures_together_stay_small_whatever_they_show(side: int, count: int) -> None:
    """A picture as a model makes it: shapes and a little noise."""
    noise = np.random.default_rng(0).normal(0, 4, (side, side, 3))
    shapes = np.add.outer(np.arange(side), np.arange(side))[..., None] * 120 / side + [0, 60, 90]
    picture = Image.fromarray(np.clip(shapes + noise, 0, 255).astype(np.uint8))
    text = page.embedded(picture, page.side_for(count), count)
    assert len(text) * count < 4_800_000


def test_small_pictures_are_kept_exactly() -> None:
    import base64
    import io

    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    data = base64.b64decode(page.embedded(picture, 512, 24).partition(",")[2])
    assert (pixels(io.BytesIO(data)) == np.asarray(picture)).all()  # type: ignore[arg-type]


def test_options_that_decide_the_pixels_are_all_said() -> None:
    command = generate_command("p", "a {}", **{**OPTIONS, "guidance": 7.123456789, "negative": "-x"})
    assert shlex.split(command) == [
        "attnbooth", "generate", "p", "a {}", "--seed", "0", "--steps", "5", "--guidance", "7.123456789",
        "--negative=-x", "--scheduler", "dpm++", "--size", "64x64", "--stage", "unet",
    ]  # fmt: skip
    assert "--negative" not in generate_command("p", "a {}", **OPTIONS)
    assert shlex.split(generate_command("-p", "a {}", **OPTIONS))[-3:] == ["--", "-p", "a {}"]
