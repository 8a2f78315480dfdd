"""The page about a run: it is there when the run is finished, says what happened, and its commands work."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnbooth_cli.errors import ResourceError
from attnbooth_cli.reports import page
from tests.browser import check_page, needs_chromium, opened
from tests.conftest import SHORT, Cli, pictures, snapshot

RUN = "001-attndreambooth"
EMBEDDING = ("--until", "embedding", "--set=train.embedding.steps=2", "--set=train.embedding.batch_size=1")
HOSTILE = 'it\'s <b onclick="x">my</b> & {} \N{MUSHROOM}'
SVG = re.compile(r"<figure class=.chart.>.*?</figure>", re.DOTALL)


def report(project: Path, run: str = RUN) -> Path:
    return project / "runs" / run / "report.html"


def figures(project: Path) -> list[str]:
    return SVG.findall(report(project).read_text(encoding="utf-8"))


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int16)


@needs_chromium
def test_the_page_tells_what_was_learned_and_how(trained_once: Path, browser: Any) -> None:
    check_page(browser, report(trained_once))
    with opened(browser, report(trained_once)) as found:
        text = found.text("body")
        for word in ("<toadstool>, a mushroom, learned from 5 pictures", RUN, "tiny", "cpu, float32", "64 pixels"):
            assert word in text
        samples = found.page.locator("main .card figcaption").all_inner_texts()[:3]
        for caption, stage, step in zip(samples, ("embedding", "attention", "unet"), (2, 8, 2), strict=True):
            assert f"After step {step} of stage {stage}" in caption
            assert "a photo of a <toadstool> mushroom on the beach, seed 0" in caption
        charts = found.page.locator(".chart svg")
        labels = [charts.nth(number).get_attribute("aria-label") for number in range(charts.count())]
        assert [label.split(" by ")[0] for label in labels] == ["Diffusion loss", "Attention loss and its terms"]
        assert all(name in labels[1] for name in ("attention loss from", "mean term from", "variance term from"))
        assert found.page.locator("h2", has_text="Training pictures").locator("+ .gallery img").count() == 5
        found.page.click("summary:has-text('All ')")
        rows = found.page.locator("table", has_text="Settings of the run").locator("tbody tr").all_inner_texts()
        assert "train.attention.steps\t8\t--set" in rows
        assert "train.attention.mean_weight\t2.0\tmethod attndreambooth" in rows
        found.page.click("table.sortable th:nth-child(3) button")
        assert found.page.locator("th[aria-sort=ascending]").count() == 1


@needs_chromium
def test_a_copied_command_makes_the_sample_again(cli: Cli, trained: Path, browser: Any) -> None:
    # The page was written where this copy was made from; a concept that is lost is made again, and the page with it.
    (trained / "concept" / "concept.json").unlink()
    assert cli("train", trained, *SHORT).code == 0
    with opened(browser, report(trained)) as found:
        for stage in ("attention", "unet"):
            found.page.locator(".card", has_text=f"of stage {stage}").locator("button[data-copy]").click()
            command = shlex.split(found.page.evaluate("navigator.clipboard.readText()"))
            assert found.text("#said") == "Copied"
            assert command[:4] == ["attnbooth", "generate", str(trained), "a photo of a {} on the beach"]
            made = cli(*command[1:])
            assert made.code == 0, made.err
            sample = trained / "samples" / f"{RUN}-{stage}.png"
            assert np.abs(pixels(Path(made.out.strip())) - pixels(sample)).max() <= 1
        found.page.click(".card button.picture >> nth=0")
        assert "After step 2 of stage embedding" in found.text("#viewer p")


def test_a_run_that_was_stopped_and_resumed_has_the_same_curves(
    cli: Cli, interrupted: Path, trained_once: Path
) -> None:
    assert not report(interrupted).exists()
    done = cli("resume", interrupted, "--json")
    assert done.named("done")[0]["report"] == str(report(interrupted))
    assert figures(interrupted) == figures(trained_once)
    assert "The run was begun and then continued once" in report(interrupted).read_text(encoding="utf-8")


def test_the_regularisers_terms_are_told_and_add_up(trained_once: Path) -> None:
    lines = (trained_once / "runs" / RUN / "events.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    assert len(steps) == 12
    for event in steps:
        assert event["attention_mean_loss"] + event["attention_variance_loss"] == event["attention_loss"]
    assert all(event["attention_mean_loss"] > 0 < event["attention_variance_loss"] for event in steps[2:])


def test_the_page_can_be_left_out_and_is_named_otherwise(cli: Cli, project: Path) -> None:
    without = cli("train", project, *EMBEDDING, "--no-report", "--json")
    assert without.named("done")[0]["report"] is None
    assert not report(project).exists()
    again = cli("train", project, *EMBEDDING, "--restart")
    written = report(project, "002-attndreambooth")
    assert written.is_file()
    assert f"report:  {written}" in again.out.splitlines()
    before = snapshot(project)
    nothing = cli("train", project, *EMBEDDING, "--json")
    assert nothing.named("done")[0]["nothing_to_do"] is True
    assert nothing.named("done")[0]["report"] == str(written)
    assert snapshot(project) == before


def test_stages_that_are_left_are_said_and_then_added(cli: Cli, project: Path) -> None:
    flags = ("--set=train.unet.enabled=false", *SHORT)
    assert cli("train", project, *flags, "--until", "embedding").code == 0
    text = report(project).read_text(encoding="utf-8")
    assert "attention still to do" in text
    assert f"attnbooth resume {project}" in text
    assert cli("train", project, *flags).code == 0
    text = report(project).read_text(encoding="utf-8")
    assert "still to do" not in text
    assert "stage embedding" in text
    assert "stage attention" in text


@pytest.mark.parametrize(
    "error", [ResourceError("cannot write it: the disk is full"), OSError(5, "Input/output error")]
)
def test_a_page_that_cannot_be_written_does_not_fail_the_training(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(page.durable, "write_text", lambda path, text, write=page.durable.write_text: (
        fail() if path.suffix == ".html" else write(path, text)
    ))  # fmt: skip
    done = cli("train", project, *EMBEDDING)
    assert done.code == 0
    assert "note: the report of the run could not be written" in done.err
    assert "report:" not in done.out
    assert (project / "concept" / "concept.json").is_file()


def test_samples_and_pictures_that_are_gone_are_left_out(cli: Cli, interrupted: Path) -> None:
    for path in (interrupted / "samples").glob("*.png"):
        path.write_bytes(b"no picture")
    assert cli("resume", interrupted).code == 0
    text = report(interrupted).read_text(encoding="utf-8")
    assert "stage embedding<br>" not in text
    assert "stage unet<br>" in text


@needs_chromium
def test_names_and_prompts_are_only_text(cli: Cli, tmp_path: Path, browser: Any) -> None:
    root = tmp_path / HOSTILE.replace("/", "\N{DIVISION SLASH}")
    images = pictures(tmp_path / "in", names=("one", "two", "three"))
    (images / "one.png").rename(images / "<img src=x onerror=alert(1)>.png")
    flags = ("--category", "cat", "--token", "<it>", "--model", "tiny")
    assert cli("init", root, "--images", images, *flags).code == 0
    prompt = "a photo of a {} <script>alert('1')</script>"
    done = cli("train", root, *EMBEDDING, f"--set=train.prompt={prompt}")
    assert done.code == 0, done.err
    (following,) = [line for line in done.out.splitlines() if line.startswith("next:")]
    assert shlex.split(following)[1:4] == ["attnbooth", "generate", str(root)]
    check_page(browser, report(root))
    with opened(browser, report(root)) as found:
        assert found.page.locator("main b, main script, [onclick], [onerror], [style]").count() == 0
        assert found.text("h1") == f"{root.name}: {RUN}"
        commands = [
            shlex.split(found.page.locator("button[data-copy]").nth(number).get_attribute("data-copy"))
            for number in range(found.page.locator("button[data-copy]").count())
        ]
        assert len(commands) == 5  # one sample; the rest, generate, eval and inspect-attn
        assert all(command[0] == "attnbooth" and command[2] == str(root) for command in commands)


def test_a_smoke_test_says_so_and_promises_nothing_of_a_real_concept(cli: Cli, trained: Path) -> None:
    assert cli("train", trained, "--smoke", "--until", "embedding").code == 0
    text = report(trained, "002-attndreambooth-smoke").read_text(encoding="utf-8")
    assert "A smoke test" in text
    assert "attnbooth generate" not in text
    assert "another run" in text
