"""The page of `attnbooth eval --report`, opened as a person opens it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnbooth_cli.reports import eval_page
from attnbooth_cli.reports.eval_page import command_again, pictures_shown, write_eval_page
from tests.browser import check_page, needs_chromium, opened
from tests.conftest import EXAMPLE, Cli

HOSTILE = '<script>window.hacked = 1</script> a {} on a "beach" isn\'t {{ 7 * 7 }} 🍄'
PROMPTS = (HOSTILE, "an oil painting of a {} in the forest")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    return file


def column(page: Any, caption: str, number: int) -> list[str]:
    """What one column of a table says, from top to bottom."""
    found: list[str] = page.eval_on_selector_all(
        f'[aria-label="{caption}"] tbody tr', f"rows => rows.map(row => row.cells[{number}].textContent)"
    )
    return found


@needs_chromium
def test_the_page_shows_what_the_report_says(
    cli: Cli, trained: Path, prompts: Path, browser: Any, few_steps: None
) -> None:
    done = cli("eval", trained, "--prompts", prompts, "-n", 2, "--baseline", "--report", "--json").document
    page = Path(done["page"])
    assert page == Path(done["report"]).with_name("report.html")
    check_page(browser, page)
    assert str(trained.parent) not in re.sub("generate [^ ]+", "", page.read_text(encoding="utf-8"))
    with opened(browser, page) as found:
        assert found.page.evaluate("window.hacked === undefined")
        overall = found.text("#numbers")
        for name in ("identity", "text", "survival", "diversity", "drift"):
            assert f"{done['overall'][name]['mean']:.4f}" in overall
        assert f"{done['untuned']['text']['mean']:.4f}" in overall
        for what in ("attnbooth", "dpm++, 25 steps", "64 x 64", "seeds", "pictures_per_prompt: 2"):
            assert what in overall
        assert column(found.page, "By prompt; each leads to its pictures", 0) == list(PROMPTS)
        pictures = [its for row in done["per_prompt"] for its in row["pictures"]]
        captions = found.page.eval_on_selector_all(".prompt figcaption", "its => its.map(one => one.innerText)")
        for its, caption in zip(pictures, captions, strict=True):
            for value in (
                f"seed {its['seed']}",
                f"identity {its['identity']:.4f}",
                f"text {its['text']:.4f}",
                its["nearest"],
            ):
                assert value in caption
        assert found.page.locator(".copied").count() == sum(its["copy"] for its in pictures)
        assert len(column(found.page, "Every pair", 0)) == 16


@needs_chromium
def test_tables_are_sorted_and_lead_to_pictures_by_keyboard(
    cli: Cli, trained: Path, prompts: Path, browser: Any, few_steps: None
) -> None:
    done = cli("eval", trained, "--prompts", prompts, "-n", 1, "--no-drift", "--report", "--json").document
    by_prompt, by_picture = "By prompt; each leads to its pictures", "Every picture; each leads to it"
    with opened(browser, Path(done["page"])) as found:
        page = found.page
        for caption, places in ((by_prompt, (2, 3, 5, 6)), (by_picture, (1, 2, 3, 5))):
            if caption == by_picture:
                page.focus("summary:has-text('All pictures')")
                page.keyboard.press("Enter")
            for place in places:
                header = page.locator(f'[aria-label="{caption}"] th button').nth(place)
                for reverse in (False, True):
                    header.press("Enter")
                    shown = [float(text) for text in column(page, caption, place)]
                    assert shown == sorted(shown, reverse=reverse)
        scores = {row["prompt"]: row["identity"] for row in done["per_prompt"]}
        page.locator(f'[aria-label="{by_prompt}"] th button').nth(2).press("Enter")
        worst = min(scores, key=lambda prompt: scores[prompt])
        page.locator(f'[aria-label="{by_prompt}"] tbody a').first.press("Enter")
        assert page.locator(":target h3").inner_text() == worst
        page.wait_for_function("document.querySelector(':target').getBoundingClientRect().top < innerHeight")
        page.locator(f'[aria-label="{by_picture}"] tbody tr td:nth-child(3)').first.click()  # a mouse may hit anything
        assert page.locator("figure:target").count() == 1


def test_the_command_makes_the_picture_again(cli: Cli, trained: Path, prompts: Path, tmp_path: Path) -> None:
    """In a shell, quotes and emoji and all; the pictures agree to 1/255."""
    prompts.write_text(HOSTILE, encoding="utf-8")
    flags = ("--prompts", prompts, "-n", 1, "--seed", 5, "--stage", "attention", "--no-drift", "--report", "--json")
    done = cli("eval", trained, *flags).document
    command = command_again(trained, done, HOSTILE, 5)
    assert escaped(command) in Path(done["page"]).read_text(encoding="utf-8")
    program, *arguments = shlex.split(command)
    assert program == "attnbooth"
    (again,) = cli(*arguments, "--out", tmp_path / "again", "--json").document["pictures"]
    first, second = (np.asarray(Image.open(path), np.int16) for path in (trained / done["pictures"][0], again["path"]))
    assert np.abs(first - second).max() <= 1
    assert " -- " in command_again(Path("-cat"), done, "{}", 5)


def escaped(text: str) -> str:
    """A text as Jinja escapes it."""
    from markupsafe import escape

    return str(escape(text))


@needs_chromium
def test_over_training_and_side_by_side(
    cli: Cli, trained: Path, prompts: Path, browser: Any, tmp_path: Path, few_steps: None
) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "<b>other"))
    flags = ("--prompts", prompts, "-n", 1, "--no-drift", "--checkpoints", "--report", "--json")
    done = cli("eval", trained, other, *flags).document
    page, comparison = Path(done["results"][1]["page"]), Path(done["comparison_page"])
    assert comparison == trained / "eval" / "comparison" / "report.html"
    check_page(browser, page)
    check_page(browser, comparison)
    with opened(browser, page) as found:
        charts = found.page.eval_on_selector_all(".chart svg", "its => its.map(one => one.getAttribute('aria-label'))")
        assert [chart.partition(" ")[0] for chart in charts] == ["identity", "text"]
        assert found.page.locator(".chart").first.locator(".dot").count() == 3
        moments = done["results"][1]["over_training"]["moments"]
        assert column(found.page, "Every moment of the run that is kept", 0) == [its["name"] for its in moments]
        assert "concept/" in column(found.page, "Every moment of the run that is kept", 6)[-1]
    with opened(browser, comparison) as found:
        assert column(found.page, "Side by side", 0) == [str(trained), str(other)]
        assert column(found.page, "Side by side", 2) == ["", "+0.0000"]


def test_why_there_is_no_comparison_is_on_the_page(cli: Cli, trained: Path, prompts: Path, few_steps: None) -> None:
    flags = ("--prompts", prompts, "--no-drift", "--json")
    first = cli("eval", trained, *flags, "-n", 1).document
    assert "page" not in first
    done = cli("eval", trained, *flags, "-n", 2, "--against", first["report"], "--report").document
    assert "There is no comparison" in Path(done["page"]).read_text(encoding="utf-8")


def report_of(prompts: int, n: int, size: int, picture: str, **changes: Any) -> dict[str, Any]:
    """A report as evaluation writes it, every picture the same file."""
    summary = {"mean": 0.5, "low": 0.4, "high": 0.6, "prompts": prompts, "over": "prompts"}
    its = {"identity": 0.5, "text": 0.25, "nearest": "one.png", "nearest_cosine": 0.9, "copy": False, "copy_of": None}
    rows = [
        {
            "group": "all", "prompt": f"a {{}} number {place}", "scored_as": f"a cat number {place}",
            "counts_for": ["identity", "text"], "identity": 0.5, "text": 0.25, "diversity": None, "survival": None,
            "pictures": [{**its, "seed": seed, **changes} for seed in range(n)],
        }
        for place in range(prompts)
    ]  # fmt: skip
    return {
        "identity": 0.5, "text": 0.25, "overall": {"identity": summary, "copies": {"count": 0, "of": prompts * n}},
        "references": {"count": 1, "identity": None, "pictures": ["images/one.png"]},
        "groups": {"all": {"identity": summary, "text": None}}, "per_prompt": rows, "run": "001", "stage": "unet",
        "step": 1, "smoke": True, "base": {"model": "tiny"}, "device": "cpu", "made": 0,
        "pictures": [picture] * (prompts * n),
        "protocol": {
            "name": "attnbooth", "source": "here", "deviations": {}, "judge": {"ref": "tiny"}, "references": 1,
            "prompts": prompts, "pictures_per_prompt": n, "seeds": list(range(n)), "steps": 25, "guidance": 7.5,
            "width": size, "height": size, "scheduler": "dpm++", "negative": "",
        },
    }  # fmt: skip


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A project's folder with one picture of 512 pixels, as full of detail as a photograph."""
    (tmp_path / "images").mkdir()
    with Image.open(sorted((EXAMPLE / "cat").iterdir())[0]) as picture:
        smooth = np.asarray(picture.convert("RGB").resize((512, 512), Image.Resampling.BICUBIC), np.float64)
    noise = np.random.default_rng(0).normal(0, 6, smooth.shape)
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / "one.png")
    return tmp_path


def test_a_usual_run_of_large_pictures_stays_under_five_megabytes(large: Path) -> None:
    page = write_eval_page(large, large, report_of(24, 4, 512, "images/one.png"))
    assert page.stat().st_size < 5_000_000
    assert page.read_text(encoding="utf-8").count('src="data:image/webp') == 24 * 4 + 1


def test_of_very_many_pictures_the_first_of_each_prompt_are_shown(project: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(eval_page, "MOST_PICTURES", 50)
    picture = sorted((project / "images").iterdir())[0]
    picture.rename(picture.with_name("one.png"))
    report = report_of(25, 64, 64, "images/one.png")
    assert [len(its) for its in pictures_shown(report)] == [2] * 25
    text = write_eval_page(project, project, report).read_text(encoding="utf-8")
    assert f"count {25 * 64 - 50} more" in text
    assert text.count('src="data:image/webp') == 51


def test_copies_are_marked_and_no_command_is_promised_for_what_is_not_the_concept(project: Path) -> None:
    picture = sorted((project / "images").iterdir())[0]
    picture.rename(picture.with_name("one.png"))
    report = report_of(2, 1, 64, "images/one.png", copy=True, copy_of="one.png")
    text = write_eval_page(project, project, report).read_text(encoding="utf-8")
    assert text.count('<span class="copied">a copy of one.png</span>') == 2
    assert "attnbooth generate" in text
    over_training = {"current": None, "moments": []}
    text = write_eval_page(project, project, report, over_training=over_training).read_text(encoding="utf-8")
    assert "attnbooth generate" not in text


def test_the_text_fits_a_terminal(cli: Cli, trained: Path, prompts: Path, few_steps: None) -> None:
    prompts.write_text(f"{HOSTILE} {'and a very long sentence ' * 4}\na photo of a {{}}\n", encoding="utf-8")
    flags = ("--prompts", prompts, "-n", 2, "--baseline", "--report", "--no-drift")
    done = cli("eval", trained, *flags)
    lines = [line for line in done.out.splitlines() if str(trained) not in line]
    assert len(lines) > 12
    assert [line for line in lines if len(line) > 80] == []
