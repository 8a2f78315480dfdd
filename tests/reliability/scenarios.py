"""Commands that are made to die or fail: where each begins, and what must come out of it all the same.

The suite tries some of their file-system calls, `python -m benchmarks.soak` all of them.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.conftest import Cli, Outcome, example_project, leftovers, pictures, quick, scored_in, weights
from tests.reliability.faults import Kind, faults

TWO_STEPS = (
    *(f"--set=train.{stage}.steps=2" for stage in ("embedding", "attention", "unet")),
    *(f"--set=train.{stage}.batch_size=1" for stage in ("embedding", "attention", "unet")),
    "--set=train.checkpoint_every=1",
    "--set=train.snapshot_every=1",
    "--set=train.save_precision=float32",
)
Start = Literal["nothing", "untrained", "interrupted", "trained"]


@dataclass(frozen=True)
class Scenario:
    """A command.

    Attributes:
        start: What is there before it.
        arguments: Its command line for a project's folder.
        outcome: What of the project must be as if nothing had happened.
        recorded: Whether a project is there to be opened, whenever it dies.
    """

    start: Start
    arguments: Callable[[Path], list[object]]
    outcome: Callable[[Path], object]
    recorded: bool = True


def _given(root: Path) -> Path:
    """Files the commands are given: beside the project, so that no fault is put there."""
    folder = root.parent / "given"
    if not folder.exists():
        pictures(folder / "photos")
        (folder / "prompts.txt").write_text("a photo of a {}\na {} in the snow\n")
    return folder


def _declared(root: Path) -> object:
    copies = {path.name: path.read_bytes() for path in (root / "images").glob("[!.]*")}
    return (root / "attnbooth.toml").read_bytes(), copies


def _pictures(root: Path) -> object:
    return {path.name: path.read_bytes() for path in (root / "samples").glob("a-*.png")}


def _scores(root: Path) -> object:
    reports = (root / "eval").glob("*/scores.json")  # what had come to its end is kept beside the repetition
    report = json.loads(max(reports, key=lambda path: path.stat().st_mtime).read_text())
    return {key: report[key] for key in ("identity", "text", "per_prompt", "overall")}


SCENARIOS: Mapping[str, Scenario] = {
    "init": Scenario(
        "nothing",
        lambda root: ["init", root, "--images", _given(root) / "photos", "--category", "cat", "--model", "tiny"],
        _declared,
        recorded=False,
    ),
    "train": Scenario("untrained", lambda root: ["train", root, *TWO_STEPS, "-q"], weights),
    "resume": Scenario("interrupted", lambda root: ["resume", root, "-q"], weights),
    "generate": Scenario(
        "trained",
        lambda root: ["generate", root, "--prompts", _given(root) / "prompts.txt", "-n2", "--steps=1", "--missing"],
        _pictures,
    ),
    "eval": Scenario("trained", lambda root: ["eval", root, "--prompts", _given(root) / "prompts.txt", "-n1"], _scores),
}


@dataclass(frozen=True)
class Trial:
    """A scenario with the projects it begins from.

    Attributes:
        starts: The projects, by what they are.
        root: Where copies of them are tried.
        call: Runs a command line in this process.
    """

    scenario: Scenario
    starts: Mapping[str, Path]
    root: Path
    call: Cli

    def begin(self) -> None:
        """A new copy."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        if self.scenario.start != "nothing":
            shutil.copytree(self.starts[self.scenario.start], self.root)

    def undisturbed(self, kind: Kind) -> tuple[list[str], object]:
        """The calls of the command when nothing goes wrong, and what comes out."""
        self.begin()
        arguments = self.scenario.arguments(self.root)
        with faults(self.root, kind=kind) as counted:
            done = self.call(*arguments)
        assert done.code == 0, done.err
        return counted.calls, self.scenario.outcome(self.root)

    def disturbed(self, number: int, kind: Kind, expected: object) -> None:
        """Lets one call go wrong, then gives the command again.

        Raises:
            AssertionError: something was lost, or came out otherwise.
        """
        self.begin()
        arguments = self.scenario.arguments(self.root)
        code: int | None = None
        with faults(self.root, number, kind) as failed:
            code = self.call(*arguments).code
        what = f"{kind} at call {number}, {failed.calls[-1]}"
        # A full disk may also fail what a run can do without, such as its log: then it goes on.
        assert code in ((None,) if kind == "dies" else (0, 6)), what
        if self.scenario.recorded:
            assert self.call("status", self.root).code == 0, what
        a_day_passes(self.root)
        done = self.call(*arguments)
        if self.scenario.start == "nothing" and done.code == 2 and self.call("status", self.root).code == 0:
            assert "already" in done.err, what  # it had come to its end
        else:
            assert done.code == 0, (what, done.err)
        assert self.scenario.outcome(self.root) == expected, what
        assert leftovers(self.root) == [], what


def a_day_passes(root: Path) -> None:
    """Makes the files of a project a day older."""
    for path in root.rglob("*"):
        then = path.stat().st_mtime - 24 * 3600
        os.utime(path, (then, then))


def make_starts(folder: Path, call: Cli) -> dict[str, Path]:
    """A project untrained, one trained, and one whose process died in the middle of its training."""
    starts = {"untrained": example_project(folder / "untrained" / "p")}
    for name in ("trained", "interrupted"):
        starts[name] = Path(shutil.copytree(starts["untrained"], folder / name / "p"))
    arguments: list[Any] = ["train", starts["trained"], *TWO_STEPS, "-q"]
    with faults(starts["trained"]) as counted:
        assert call(*arguments).code == 0
    with faults(starts["interrupted"], len(counted.calls) // 2):
        call("train", starts["interrupted"], *TWO_STEPS, "-q")
    assert not (starts["interrupted"] / "concept").exists()
    return starts


def declared_two_steps(root: Path) -> None:
    """Writes `TWO_STEPS`, without the snapshots, into a project's manifest, for commands without options."""
    lines = [argument.removeprefix("--set=") for argument in TWO_STEPS if "snapshot" not in argument]
    manifest = root / "attnbooth.toml"
    kept = [line for line in manifest.read_text().splitlines() if line != "[train]" and not line.startswith("#")]
    values = [line.replace("float32", '"float32"').removeprefix("train.") for line in lines]
    manifest.write_text("\n".join([*kept, "[train]", *values]) + "\n")


@contextlib.contextmanager
def in_process(folder: Path) -> Iterator[dict[str, Trial]]:
    """Every scenario, tried in this process outside a test: pictures in few steps, nothing said."""
    from attnbooth_cli.cli.app import run

    def call(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return Outcome(run([*map(str, arguments)]), out.getvalue(), err.getvalue())

    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch, quick():
        scored_in(2, patch)
        starts = make_starts(Path(scratch) / "starts", call)
        gc.freeze()  # every stage of training collects garbage, of which the libraries are none
        yield {name: Trial(its, starts, Path(scratch) / name / "p", call) for name, its in SCENARIOS.items()}


def try_all(
    trial: Trial, kind: Kind, record: Path, say: Callable[[str], None], word: str = "", *, once: bool = False
) -> int:
    """Lets every call that has `word` in it go wrong in turn, but those a record says have been tried.

    Args:
        once: Of calls that are alike but for numbers in a file's name, the first alone.

    Returns:
        How many that were, those of the record included.
    """
    calls, expected = trial.undisturbed(kind)
    done = set(record.read_text().split()) if record.exists() else set()
    meant = [number for number, its in enumerate(calls, 1) if word in its]
    if once:
        first = {re.sub(r"[0-9a-f]{8,}|\d+", "#", calls[number - 1]): number for number in reversed(meant)}
        meant = sorted(first.values())
    for number in meant:
        if str(number) not in done:
            trial.disturbed(number, kind, expected)
            with record.open("a") as file:
                file.write(f"{number}\n")
            say(f"{record.stem}: {number} of {len(calls)}, {calls[number - 1]}")
    return len(meant)
