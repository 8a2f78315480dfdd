"""What goes to stdout, what to stderr, in which form; and that asking for help costs nothing."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnbooth_cli import __version__
from tests.conftest import Cli, example_project, pictures, run_program

COMMANDS = ("init", "train", "resume", "generate", "eval", "inspect-attn", "take", "status")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
"""Anything but a line feed that is not a character: escapes, carriage returns."""
ENVELOPE = {"schema", "event", "project", "run"}
RUN = "001-attndreambooth-smoke"


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"attnbooth {__version__}\n"


def test_without_arguments_there_is_help(cli: Cli) -> None:
    done = cli()
    assert (done.code, done.err) == (0, "")
    assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_common_flags(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    for flag in ("--json", "--quiet", "-q", "--verbose", "-v", "--help"):
        assert re.search(rf"(^|\s){flag}\b", done.out), flag


def test_help_dry_run_and_mistakes_do_not_load_torch(tmp_path: Path) -> None:
    root = example_project(tmp_path / "toadstool")
    lines = [
        *([command, "--help"] for command in COMMANDS),
        ["--help"],
        ["--version"],
        ["nonsense"],
        ["train"],
        ["train", str(root), "--until", "never"],
        ["train", str(root), "--dry-run", "--fast"],
        ["train", str(root), "--set", "train.unet.step=3"],
        ["train", str(tmp_path / "absent")],
        ["resume", str(tmp_path / "absent")],
        ["generate", str(tmp_path / "absent"), "a {}"],
        ["inspect-attn", str(tmp_path / "absent"), "a {}"],
        ["generate"],
        ["generate", str(root), "-n", "0"],
        ["status", str(root)],
    ]
    program = f"""
import sys
from attnbooth_cli.cli.app import run
for line in {lines!r}:
    run(line)
    loaded = {{"torch", "diffusers", "transformers"}} & set(sys.modules)
    assert not loaded, (line, loaded)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_slow() -> None:
    """How long it takes is `benchmarks/startup.py`'s to say; what makes it slow are imports."""
    program = """
import sys
from attnbooth_cli.cli.app import run
run(["--help"])
slow = {"torch", "diffusers", "transformers", "accelerate", "numpy", "PIL", "pydantic", "ray", "matplotlib", "asyncio"}
loaded = slow & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "x", "--until", "never"],
        ["train", "x", "--fsat"],
        ["train", "x", "--seed", "-1"],
        ["train", "absent"],
        ["train", "absent", "--dry-run"],
        ["resume", "absent"],
        ["init", "absent", "--category", "cat"],
        ["init", "absent", "--resolution", "3"],
        ["generate", "absent", "a {}"],
        ["generate", "absent", "a {}", "-n", "0"],
        ["generate", "absent", "--prompts", "absent.txt"],
        ["eval", "absent"],
        ["eval", "absent", "--prompts", "absent.txt"],
        ["eval", "absent", "also-absent"],
        ["inspect-attn", "absent"],
        ["inspect-attn", "absent", "a {}"],
        ["status", "absent"],
        ["status", "absent", "also-absent"],
    ],
    ids=" ".join,
)
def test_mistakes_are_one_json_document_too(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments, "--json")
    assert done.code == 2
    document = done.document
    assert document.keys() >= ENVELOPE
    assert document["exit_code"] == 2
    if "also-absent" not in arguments:
        assert document["event"] == "error"
        assert document["message"] in done.err
        assert "Value error" not in done.err  # no library's words
        assert document["hint"] is None or document["hint"] in done.err
    plain = cli(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err.startswith(("error: ", "== "))


def test_the_stream_of_a_training(cli: Cli, tmp_path: Path) -> None:
    root = pictures(tmp_path / "cat")
    done = cli("train", root, "--model", "tiny", "--smoke", "--json", "--set=train.checkpoint_every=1")
    assert done.code == 0
    events = done.events
    assert all(event.keys() >= ENVELOPE for event in events)
    assert all(event["schema"] == 1 for event in events)
    assert {event["project"] for event in events} == {str(root)}
    assert {event["run"] for event in events} == {RUN}
    of_a_stage = ["stage", "step", "checkpoint", "step", "checkpoint", "stage"]
    assert [event["event"] for event in events] == [
        "start", *of_a_stage, *of_a_stage, *of_a_stage[:-1], "sample", "stage", "done",
    ]  # fmt: skip
    step = done.named("step")[0]
    assert (step["stage"], step["step"], step["steps"]) == ("embedding", 1, 2)
    assert step["diffusion_loss"] > 0
    assert Path(done.named("sample")[0]["path"]).is_file()
    assert done.named("done")[0]["stages"] == ["embedding", "attention", "unet"]
    again = cli("resume", root, "--json")
    assert [(event["event"], event["run"], event["nothing_to_do"]) for event in again.events] == [("done", RUN, True)]
    logged = (root / "runs" / RUN / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in logged] == [event["event"] for event in events]


def test_piped_output_is_plain_lines_and_results_alone_go_to_stdout(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    trained = cli("train", project, "--smoke", "--until", "embedding")
    made = cli("generate", project, "a photo of a {}", "--steps", 1)
    for done in (trained, made):
        assert done.code == 0
        assert not CONTROL.search(done.out + done.err)
    assert "embedding 2/2" in trained.err
    assert [line.split(":")[0].split(" ")[0] for line in trained.out.splitlines()] == [
        "done", "concept", "sample", "report", "next",
    ]  # fmt: skip
    assert Path(made.out.rstrip("\n")).is_file()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "bars"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, False), ({"TERM": "dumb"}, False)],
)
def test_bars_are_for_terminals_without_no_color(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], bars: bool
) -> None:
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli("train", project, "--smoke", "--until", "embedding").code == 0
    text = terminal.getvalue()
    assert "embedding" in text
    assert bool(CONTROL.search(text)) is bars


def test_quiet_is_silent(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "toadstool"
    for command in (
        ("init", root, "--example"),
        ("train", root, "--smoke", "--until", "embedding"),
        ("resume", root),
        ("generate", root, "a {}", "--steps", 1),
        ("status", root),
    ):
        done = cli(*command, "-q")
        assert done.code == 0
        assert done.err == ""
        assert done.out != ""
    failed = cli("train", tmp_path / "absent", "-q")
    assert failed.err.startswith("error: ")  # but a failure is never silent


def test_an_error_says_what_is_wrong_and_then_what_to_do(cli: Cli, tmp_path: Path) -> None:
    done = cli("resume", tmp_path)
    error, hint = done.err.splitlines()
    assert error.startswith(f"error: {tmp_path} is not a concept project")
    assert hint.startswith("hint: attnbooth init ")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = run_program("status", tmp_path / "absent", "--json")
    assert done.code == 2
    assert done.document["event"] == "error"
    assert list(tmp_path.iterdir()) == []
