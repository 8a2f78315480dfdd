"""What commands say to a terminal of 80 columns fits it; paths stick out, alone on their line."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attnbooth_cli.cli.layout import about, command_lines, path_lines, settings_lines, wrapped
from attnbooth_cli.cli.progress import losses
from attnbooth_cli.events import Stepped
from tests.conftest import Cli, pictures, snapshot

WIDTH = 80
COMMANDS = ("init", "train", "resume", "generate", "eval", "inspect-attn", "take", "status")
CONTROL = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """Two of these are what a person sees."""

    def isatty(self) -> bool:
        return True


Said = Callable[..., list[str]]


@pytest.fixture
def said(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Said:
    """Runs a command on a terminal of 80 columns without colour, and gives the lines it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object, code: int = 0) -> list[str]:
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "stderr", screen)
            assert cli(*arguments).code == code, screen.getvalue()
        return screen.getvalue().splitlines()

    return call


def sticking_out(lines: list[str]) -> list[str]:
    """Lines that are too long and hold more than a path."""
    return [line for line in lines if len(line) > WIDTH and not is_path(line)]


def is_path(line: str) -> bool:
    words = shlex.split(line.removesuffix("\\"))
    return Path(line.strip().removesuffix(":")).exists() or (len(words) == 1 and Path(words[0]).exists())


@pytest.mark.parametrize(
    "folder", ["my_mushroom", "a folder with a name that somebody has thought of for long/and another/my_mushroom"]
)
def test_everything_fits(said: Said, tmp_path: Path, folder: str) -> None:
    root = pictures(tmp_path / folder, "mushroom")
    long = folder != "my_mushroom"
    project = root if long else folder
    lines = said("init", project, "--model", "tiny")
    lines += said("train", project, "--dry-run", "--fast", "--set", f"train.prompt=a {{}} {'on the beach ' * 8}")
    lines += said("train", project, "--smoke")
    lines += said("train", project, "--smoke")
    lines += said("resume", project)
    lines += said("generate", project, "a photo of a {} on a beach", "--steps", 1, "-n", 2, "--grid")
    lines += said("inspect-attn", project, "a photo of a {} on a beach", "--steps", 2)
    lines += said("take", project, "embedding-2")
    lines += said("take", project, "embedding-2")
    lines += said("status", project)
    lines += said("generate", project, "a beach", code=2)
    hints = [line for line in lines if line.startswith("hint: ")]  # stay whole, to be pasted
    assert sticking_out([line for line in lines if line not in hints or not long]) == []
    assert any(len(line) > WIDTH for line in lines) is long


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits(said: Said, command: str | None) -> None:
    lines = said(*([command] if command else []), "--help")
    assert [line for line in lines if len(line) > WIDTH] == []


def test_the_widest_bars_fit(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert cli("train", project, "--smoke", "--method", "dreambooth", "--set", "train.prior_pictures=1").code == 0
    lines = CONTROL.sub("", screen.getvalue()).replace("\r", "\n").splitlines()
    bars = [line for line in lines if line.startswith("unet ")]
    assert any("prior" in line for line in bars)
    assert sticking_out(lines) == []
    assert not [line for line in lines if "…" in line]  # as Rich shortens what does not fit


def test_losses_that_are_not_part_of_a_method_are_left_out() -> None:
    step = Stepped("unet", 1000, 1000, 0.0123, 0.0, 0.5, prior_loss=0.0456)
    assert losses(step) == "diffusion 0.0123  prior 0.0456"


def test_a_pipe_gets_every_statement_in_one_line(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert cli("status", project).out.splitlines()[-1] == f"next: attnbooth train {project}"
    error, hint = cli("generate", project, "a {}").err.splitlines()
    assert (error, hint) == (f"error: {project} has no trained concept yet", f"hint: attnbooth train {project}")


@pytest.mark.parametrize("name", ["my cat", "it's", "$HOME", "a;b", "plain"])
def test_commands_in_hints_can_be_pasted(cli: Cli, tmp_path: Path, name: str) -> None:
    root = pictures(tmp_path / name)
    made = cli("init", root, "--category", "cat", "--token", "<x>", "--model", "tiny")
    assert made.code == 0
    before = snapshot(root)
    (following,) = (line for line in made.out.splitlines() if line.startswith("next: "))
    hint = cli("generate", root, "a {}").err.splitlines()[-1]
    following_too = cli("status", root, "--json").document["next"]
    assert shlex.split(following) == ["next:", "attnbooth", "train", str(root), "--fast"]
    assert shlex.split(hint) == ["hint:", "attnbooth", "train", str(root)]
    assert shlex.split(following_too) == ["attnbooth", "train", str(root)]
    assert snapshot(root) == before


def test_a_broken_command_is_the_same_command() -> None:
    command = """attnbooth generate '/a b/c'"'"'d' "a photo of a {} on a beach" -n 4 --grid"""
    label, *lines = command_lines("next:   ", command, 44)
    assert label == "next:"
    assert all(len(line) <= 44 for line in lines)
    assert len(lines) > 1
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(command)
    assert command_lines("next:", command, 200) == [f"next: {command}"]


def test_lines_are_broken_between_words_only() -> None:
    assert wrapped("  one two-three four", 14) == ["  one", "      two-three", "      four"]
    assert wrapped("short", 14) == ["short"]
    assert path_lines("sample: ", "/a/b", 20) == ["sample:  /a/b"]
    assert path_lines("sample: ", "/a/b c", 10) == ["sample:", "  /a/b c"]
    assert about("/a/b c/d", "four pictures", 16) == ["/a/b c/d:", "  four pictures"]


def test_long_settings_push_their_origin_below() -> None:
    table = {"train.seed": (0, "default"), "train.prompt": ("a photo of a {} on a beach", "--set")}
    assert list(settings_lines(table, 44)) == [
        "train.seed    0               default",
        "train.prompt  a photo of a {} on a beach",
        "              from --set",
    ]
