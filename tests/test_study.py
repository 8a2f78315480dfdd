"""`attnbooth eval --study` and `--tally`: a blind page taken as a participant takes it, and its answers counted."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import check_page, needs_chromium, opened
from tests.conftest import SHORT, Cli, example_project, pictures

HOSTILE = "</script><script>window.hacked = 1</script> a \"{}\" on a 'beach' 🍄 {{ 7 * 7 }}"
PROMPTS = (
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "a photo of a {} on the road",
    "a photo of a {} in the city",
    "an oil painting of a {}",
    HOSTILE,
)


@pytest.fixture(scope="module")
def two(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two projects of one concept: one trained to the end, the other's embedding alone."""
    import shutil

    from attnbooth_cli.cli.app import run

    folder = tmp_path_factory.mktemp("two")
    other = example_project(folder / "zebra-method")
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["train", str(other), *SHORT, "--until", "embedding", "-q"]) == 0
    return Path(shutil.copytree(trained_once, folder / "yak-method")), other


@contextlib.contextmanager
def three_steps() -> Iterator[None]:
    from attnbooth_cli.engine import gallery, sampling

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gallery, "sample_missing", lambda c, r, s, *rest: sampling.sample_missing(c, r, replace(s, steps=3), *rest)
        )
        yield


@pytest.fixture(scope="module")
def study(two: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of six questions."""
    from attnbooth_cli.cli.app import run

    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), three_steps():
        assert run(["eval", "--study", *map(str, two), "--prompts", str(prompts), "--json"]) == 0
    document = json.loads(out.getvalue())
    assert (document["event"], document["questions"], document["made"]) == ("study", 6, 12)
    folder = Path(document["folder"])
    assert folder == two[0] / "eval" / "study-1"
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "study.html"]
    assert (document["page"], document["key"]) == (str(folder / "study.html"), str(folder / "key.json"))
    return folder


def key_of(study: Path) -> dict[str, Any]:
    key: dict[str, Any] = json.loads((study / "key.json").read_text(encoding="utf-8"))
    return key


def asked(page: Path) -> dict[str, Any]:
    """What the page holds, as its script reads it."""
    (text,) = re.findall(r'<script type="application/json" id="study">(.*?)</script>', page.read_text(encoding="utf-8"))
    found: dict[str, Any] = json.loads(text)
    return found


def pixels(source: str) -> bytes:
    """Of an embedded picture."""
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        return picture.convert("RGB").tobytes()


def answers(study: Path, prefers: Callable[[int], str], participant: str = "0" * 16, **other: Any) -> dict[str, Any]:
    """Answers as the page writes them; `prefers` says a or b for each question of the key."""
    questions = key_of(study)["questions"]
    return {
        "kind": "attnbooth study answers",
        "schema": 1,
        "study": key_of(study)["study"],
        "participant": participant,
        "name": "",
        "answers": [
            {"question": its["id"], "left": its["a"], "right": its["b"], "chosen": its[prefers(place)]}
            for place, its in enumerate(questions)
        ],
    } | other


def written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@needs_chromium
def test_a_study_is_taken_by_keyboard(
    cli: Cli, two: tuple[Path, Path], study: Path, browser: Any, tmp_path: Path
) -> None:
    """A participant who always prefers the second project's picture is counted as just that."""
    check_page(browser, study / "study.html")
    wanted = {picture_pixels(path) for path in (two[1] / "eval" / "pictures").rglob("*.png")}
    with opened(browser, study / "study.html") as found:
        page = found.page
        page.focus("#name")
        page.keyboard.type("Ann <b>&")
        page.keyboard.press("Enter")
        for place in range(6):
            assert found.text("#place") == f"Question {place + 1} of 6"
            left, right = page.eval_on_selector_all(".pair img", "its => its.map(one => one.src)")
            assert (pixels(left) in wanted) != (pixels(right) in wanted)
            right_answer, wrong = ("ArrowLeft", "ArrowRight")[:: 1 if pixels(left) in wanted else -1]
            if place == 2:  # a mistake, taken back after a reload
                page.keyboard.press(wrong)
                page.reload()
                assert found.text("#place") == "Question 4 of 6"
                page.keyboard.press("Backspace")
                assert found.text("#place") == "Question 3 of 6"
                assert page.get_attribute(f".pair [data-side='{int(wrong == 'ArrowRight')}']", "aria-pressed") == "true"
            page.keyboard.press(right_answer)
        assert page.is_visible("#end")
        with page.expect_download() as download:
            page.focus("#download")
            page.keyboard.press("Enter")
        download.value.save_as(tmp_path / download.value.suggested_filename)
        page.click("#copy")
        copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
        assert page.evaluate("window.hacked === undefined")
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text(encoding="utf-8")) == copied
    assert copied["name"] == "Ann <b>&"
    document = cli("eval", "--tally", study / "key.json", file, "--json").document
    assert (document["overall"]["share"], document["overall"]["answers"]) == (1, 6)
    assert document["b"]["project"] == str(two[1])
    assert document["participants"][0]["name"] == "Ann <b>&"


def picture_pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


@needs_chromium
def test_every_participant_has_an_order_of_their_own(study: Path, browser: Any) -> None:
    drawn = []
    for _ in range(2):
        with opened(browser, study / "study.html") as found:
            found.page.click("#start button")
            drawn.append(found.page.evaluate("JSON.stringify(state.order)"))
            people = found.page.evaluate("state.participant")
            found.page.evaluate("localStorage.setItem(KEPT, '{\"order\": 3}')")  # whatever is in there
            found.page.reload()
            assert found.page.is_visible("#start")
            assert found.page.evaluate("state.participant") != people
    assert drawn[0] != drawn[1]


def test_nothing_on_the_page_tells_whose_a_picture_is(
    cli: Cli, two: tuple[Path, Path], study: Path, tmp_path: Path
) -> None:
    """Pages of A and B and of B and A differ in opaque names and in nothing else; and the key gives no side away."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    out = tmp_path / "swapped"
    with three_steps():
        done = cli("eval", "--study", *reversed(two), "--prompts", prompts, "--out", out, "--json")
    assert (done.code, done.document["made"]) == (0, 0)  # the pictures were there
    shapes = []
    for folder in (study, out):
        page = (folder / "study.html").read_text(encoding="utf-8")
        told = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # in which any short word may turn up by chance
        assert len(told) < len(page)
        for word in ("yak-method", "zebra-method", "attndreambooth", "001-", "embedding", "unet", "toadstool", "seed"):
            assert word not in told.lower(), word
        found = asked(folder / "study.html")
        for its in found["questions"]:
            assert [one["id"] for one in its["pictures"]] == sorted(one["id"] for one in its["pictures"])
            for one in its["pictures"]:
                data = base64.b64decode(one["src"].partition(",")[2])
                assert not [chunk for chunk in (b"EXIF", b"XMP ", b"ICCP") if chunk in data[:64]]
        questions = sorted(
            (its["prompt"], *sorted(pixels(one["src"]) for one in its["pictures"])) for its in found["questions"]
        )
        shapes.append((questions, re.sub(r'<script type="application/json".*?</script>', "", page)))
    assert shapes[0] == shapes[1]
    first, second = key_of(study), key_of(out)
    assert first["a"] == second["b"]
    names = [its[side] for key in (first, second) for its in key["questions"] for side in ("id", "a", "b")]
    assert len(set(names)) == len(names) == 36


def test_a_study_reuses_what_eval_made(cli: Cli, two: tuple[Path, Path], tmp_path: Path, few_steps: None) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a drawing of a {} in the rain")
    assert cli("eval", two[0], "--prompts", prompts, "-n", 1, "--no-drift", "-q").code == 0
    done = cli("eval", "--study", *two, "--prompts", prompts, "--out", tmp_path / "here", "--json")
    assert done.document["made"] == 1
    again = cli("eval", "--study", *two, "--prompts", prompts, "--out", tmp_path / "here")
    assert again.code == 2
    assert "nothing is overwritten" in again.err


def test_concepts_that_cannot_be_compared(cli: Cli, two: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    from attnbooth_cli.engine.concept import CARD

    def changed(change: Callable[[dict[str, Any]], None]) -> Path:
        root = Path(shutil.copytree(two[1], tmp_path / "changed", dirs_exist_ok=True))
        document = json.loads((two[1] / "concept" / CARD).read_text(encoding="utf-8"))
        change(document)
        written(root / "concept" / CARD, document)
        return root

    def other_pictures(document: dict[str, Any]) -> None:
        folder = tmp_path / "changed" / "images"
        shutil.rmtree(folder)
        pictures(folder)
        from attnbooth_cli.project import durable

        document["plan"]["pictures"] = [
            {"name": path.name, "sha256": durable.sha256(path)} for path in sorted(folder.iterdir())
        ]

    for change, why in (
        (lambda document: document.update(category="cat"), "is a mushroom"),
        (lambda document: document["plan"].update(resolution=128), "128"),
        (other_pictures, "share no training picture"),
    ):
        refused = cli("eval", "--study", two[0], changed(change))
        assert refused.code == 2
        assert why in refused.err
        assert "hint:" in refused.err
    for projects, why in (
        ([two[0]], "two projects, not 1"),
        ([two[0], two[0]], "two different"),
        ([*two, two[0]], "not 3"),
    ):
        refused = cli("eval", "--study", *projects)
        assert refused.code == 2
        assert why in refused.err
    for flags in (["--report"], ["--min-text", "0"], ["--clip", "tiny"]):
        refused = cli("eval", "--study", *two, *flags)
        assert refused.code == 2
        assert flags[0] in refused.err
    assert cli("eval", two[0], "--out", tmp_path).code == 2


def test_answers_are_counted(cli: Cli, study: Path, tmp_path: Path) -> None:
    """By prompt, by person and in all; the key is found beside an answers file; all of it fits 80 columns."""
    (tmp_path / "key.json").write_bytes((study / "key.json").read_bytes())
    always = written(tmp_path / "1.json", answers(study, lambda _: "b", "1" * 16, name="Zoë 🍄 " * 9))
    half = written(tmp_path / "2.json", answers(study, lambda place: "ab"[place % 2], "2" * 16))
    document = cli("eval", "--tally", always, half, "--json").document
    overall = document["overall"]
    assert (overall["share"], overall["chosen"], overall["answers"]) == (0.75, 9, 12)
    assert overall["low"] < 0.75 < overall["high"]
    assert [its["preference"]["share"] for its in document["participants"]] == [1, 0.5]
    assert document["groups"].keys() == {"prompts"}
    assert document["left"] == 0.25
    shown = cli("eval", "--tally", always, half)
    assert "B over A: 75.0 %, 9 of 12 answers" in shown.out
    assert "say" in shown.err  # with two people
    assert all(len(line) <= 80 for line in shown.out.splitlines() if str(study.parent.parent) not in line)


def test_a_tally_loads_no_torch(study: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "1.json", answers(study, lambda _: "b"))
    program = (
        "import sys; from attnbooth_cli.cli.app import run; "
        f"print(run(['eval', '--tally', {str(study / 'key.json')!r}, {str(file)!r}, '-q']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_answers_that_cannot_be_believed(cli: Cli, study: Path, tmp_path: Path) -> None:
    good = answers(study, lambda _: "b")
    file = tmp_path / "answers.json"

    def changed(change: Callable[[dict[str, Any]], object]) -> str:
        document = copy.deepcopy(good)
        change(document)
        return json.dumps(document)

    for content, why in (
        ("", "neither answers"),
        ("\x00\x1b[31m", "neither answers"),
        ("[" * 100_000, "neither answers"),
        ("7" * 10_000, "neither answers"),
        ('{"kind": "something else"}', "neither answers"),
        (changed(lambda its: its.update(schema=2)), "schema"),
        (changed(lambda its: its.update({"\x1b[2Jextra": 1})), "Extra"),
        (changed(lambda its: its.update(name="x" * 201)), "name"),
        (changed(lambda its: its.update(name="\ud800")), "neither answers"),
        (changed(lambda its: its.update(participant="../../etc")), "participant"),
        (changed(lambda its: its.update(study="f" * 16)), "another study"),
        (changed(lambda its: its["answers"].pop()), "leaves 1 of 6 questions open"),
        (changed(lambda its: its["answers"].append(its["answers"][0])), "twice"),
        (changed(lambda its: its["answers"][0].update(chosen="f" * 16)), "does not ask"),
        (changed(lambda its: its["answers"][0].update(left=its["answers"][1]["left"])), "does not ask"),
        (changed(lambda its: its["answers"][0].update(question="f" * 16)), "does not ask"),
    ):
        file.write_text(content, encoding="utf-8")
        refused = cli("eval", "--tally", study / "key.json", file)
        assert refused.code == 2, content[:80]
        assert why in refused.err, refused.err
        assert "\x1b" not in refused.err
        assert "hint:" in refused.err
    written(file, good)
    twin = written(tmp_path / "twin.json", good)
    os.mkfifo(tmp_path / "pipe")
    for files, why in (
        ([study / "key.json", file, twin], "same participant"),
        ([file], "no key.json"),
        ([study / "key.json"], "no answers"),
        ([study / "key.json", tmp_path], "not a file"),
        ([study / "key.json", tmp_path / "pipe"], "not a file"),
        ([study / "key.json", tmp_path / "absent.json"], "cannot read"),
    ):
        refused = cli("eval", "--tally", *files)
        assert refused.code == 2
        assert why in refused.err
    for flags in (["--study"], ["-n", "1"], ["--prompts", "live"], ["--report"]):
        assert cli("eval", "--tally", study / "key.json", file, *flags).code == 2


def test_a_copy_of_a_project_is_no_other_method(cli: Cli, two: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    copied = shutil.copytree(two[0], tmp_path / "copy")
    done = cli("eval", "--study", two[0], copied)
    assert done.code == 2
    assert "hold the same concept" in done.err
