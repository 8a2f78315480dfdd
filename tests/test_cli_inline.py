"""Pictures in the terminal: drawn where it says it can, and nothing at all elsewhere."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from attnbooth_cli.cli import generate, inspect_attn, train
from attnbooth_cli.cli.inline import fitted_size
from attnbooth_cli.cli.terminal import Graphics
from tests import terminal
from tests.conftest import Cli
from tests.terminal import KITTY, PLAIN, SILENT, SIXEL, on_terminal

SHOW = """
import time
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.inline import show_pictures
started = time.monotonic()
show_pictures(Console({flags}), {paths!r})
print("seconds:", time.monotonic() - started)
"""
ESCAPE = b"\x1b"
CLEANED = b"\r\x1b[K"
QUESTION = re.compile(rb"\x1b\[c|\x1b\[16t|\x1b\[>q|\x1b_Gi=31,[^\x1b]*\x1b\\|\r\x1b\[K")


def program(*paths: Path, flags: str = "") -> str:
    return SHOW.format(flags=flags, paths=[str(path) for path in paths])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 64), (200, 10, 10)).save(path)
    return path


def test_a_kitty_terminal_gets_the_picture_and_characters_that_place_it(picture: Path) -> None:
    screen = on_terminal(program(picture), KITTY)
    chunks = re.findall(rb"\x1b_G[^;\x1b]*f=100[^;\x1b]*;([^\x1b]+)\x1b", screen.output)
    with Image.open(io.BytesIO(base64.b64decode(b"".join(chunks)))) as shown:
        assert shown.convert("RGB").getpixel((5, 5)) == (200, 10, 10)
        assert shown.size == (160, 160)  # 16 columns of 10 pixels: enlarged
    lines = screen.output.decode().split("seconds:")[0].splitlines()
    assert [line.count("\U0010eeee") for line in lines if "\U0010eeee" in line] == [16] * 8
    assert b"38;2;" in screen.output  # the picture's number, as a colour
    assert screen.left_over == b""


def test_a_sixel_terminal_gets_sixels(picture: Path) -> None:
    screen = on_terminal(program(picture, picture), SIXEL)
    (size,) = re.findall(rb'\x1bP[\d;]*q"1;1;(\d+);(\d+)', screen.output)
    assert (int(size[0]), int(size[1])) == (320, 160)
    assert b"\x1b_Gi" in screen.output.split(CLEANED)[0]  # the question,
    assert b"\x1b_G" not in screen.output.split(CLEANED)[1]  # and no kitty picture
    assert screen.left_over == b""


@pytest.mark.parametrize(
    "answers",
    [
        PLAIN,
        SILENT,
        {**KITTY, terminal.NAME: b"\x1bP>|Konsole 22.04\x1b\\"},
        {key: KITTY[key] for key in KITTY if key != terminal.NAME},
    ],
    ids=["no graphics", "no answer", "kitty's pictures but not its characters", "no name"],
)
def test_a_terminal_without_pictures_gets_nothing(picture: Path, answers: Mapping[bytes, bytes]) -> None:
    screen = on_terminal(program(picture), answers)
    assert screen.code == 0
    assert screen.left_over == b""
    rest = QUESTION.sub(b"", screen.output)
    assert re.fullmatch(rb"seconds: [\d.]+\r\n", rest), rest
    assert float(rest.split()[1]) < 1


def test_what_was_typed_ahead_is_left_to_the_shell(picture: Path) -> None:
    screen = on_terminal(program(picture), SIXEL, typed=b"ls\n")
    assert ESCAPE not in screen.output
    assert screen.left_over == b"ls\n"


def test_tmux_is_not_asked_what_it_would_take_for_a_title(picture: Path) -> None:
    inside = {"TMUX": "/tmp/tmux-0/default,1,0", "TERM": "tmux-256color"}
    screen = on_terminal(program(picture), SIXEL, environment=inside)
    assert b"\x1b_" not in screen.output
    assert b"\x1bP" in screen.output


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        ("json=True", {}),
        ("quiet=True", {}),
        ("", {"NO_COLOR": "1"}),
        ("", {"TERM": "dumb"}),
        ("", {"ATTNBOOTH_INLINE": "0"}),
        ("", {"ATTNBOOTH_INLINE": "off"}),
    ],
)
def test_whoever_says_no_is_not_even_asked(picture: Path, flags: str, environment: dict[str, str]) -> None:
    screen = on_terminal(program(picture, flags=flags), SIXEL, environment=environment)
    assert screen.code == 0
    assert ESCAPE not in screen.output


def test_a_picture_that_cannot_be_read_fails_nothing(tmp_path: Path) -> None:
    assert on_terminal(program(tmp_path / "absent.png"), SIXEL).code == 0
    loud = on_terminal(program(tmp_path / "absent.png", flags="verbose=True"), SIXEL)
    assert b"no picture here: FileNotFoundError" in loud.output


@pytest.mark.parametrize(
    ("size", "count", "fits"),
    [
        ((512, 512), 1, (44, 22)),  # as high as the window
        ((2060, 512), 4, (80, 10)),  # as wide as the window
        ((64, 64), 1, (16, 8)),  # enlarged
        ((128, 64), 1, (16, 4)),
        ((10, 4000), 1, (1, 22)),
    ],
)
def test_pictures_fit_the_window(size: tuple[int, int], count: int, fits: tuple[int, int]) -> None:
    assert fitted_size(size, count, Graphics("sixel", (10, 20), 80, 24)) == fits


def test_what_each_command_shows(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    for module in (generate, inspect_attn, train):
        monkeypatch.setattr(module, "show_pictures", lambda _, paths: shown.append([Path(p).name for p in paths]))
    assert cli("train", project, "--smoke").code == 0
    assert cli("generate", project, "a {}", "--steps", 1, "-n", 2).code == 0
    assert cli("generate", project, "a {}", "--steps", 1, "-n", 2, "--grid").code == 0
    assert cli("inspect-attn", project, "a {}", "--steps", 1).code == 0
    sample, pictures, grid, sheet = shown
    assert sample == ["001-attndreambooth-smoke-unet.png"]
    assert pictures == ["a-mushroom-0.png", "a-mushroom-1.png"]
    assert grid == ["grid-a-mushroom.png"]
    assert sheet == ["sheet.png"]
