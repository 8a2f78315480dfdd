"""Whatever file-system call a command dies at, or fails at, nothing is lost.

The suite tries a few of all calls, others every day; `python -m benchmarks.soak faults` tries all of them.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Cli, leftovers, quick, weights
from tests.reliability.faults import Kind, faults, spread

TWO_STEPS = (
    *(f"--set=train.{stage}.steps=2" for stage in ("embedding", "attention", "unet")),
    *(f"--set=train.{stage}.batch_size=1" for stage in ("embedding", "attention", "unet")),
    "--set=train.checkpoint_every=1",
    "--set=train.snapshot_every=1",
    "--set=train.save_precision=float32",
)
TODAY = datetime.now(UTC).toordinal()


@pytest.fixture(scope="module", autouse=True)
def _quick() -> object:
    with quick():
        yield


@pytest.fixture
def reference(cli: Cli, project: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A project that is not trained yet, and what an uninterrupted run makes of it."""
    whole = Path(shutil.copytree(project, tmp_path / "whole"))
    assert cli("train", whole, *TWO_STEPS, "-q").code == 0
    return project, weights(whole)


@pytest.mark.parametrize("kind", ["dies", "is full"])
def test_train_and_resume(cli: Cli, reference: tuple[Path, dict[str, str]], tmp_path: Path, kind: Kind) -> None:
    untrained, expected = reference
    root = tmp_path / "counted" / "p"
    shutil.copytree(untrained, root)
    with faults(root, kind=kind) as counted:
        cli("train", root, *TWO_STEPS, "-q")
    for number in spread(len(counted.calls), 6, TODAY):
        shutil.rmtree(root)
        shutil.copytree(untrained, root)
        code = None
        with faults(root, number, kind) as failed:
            code = cli("train", root, *TWO_STEPS, "-q").code
        what = f"{kind} at call {number} of {len(counted.calls)}, {failed.calls[-1]}"
        assert code in ((None,) if kind == "dies" else (0, 6)), what
        assert cli("status", root).code == 0, what
        done = cli("train", root, *TWO_STEPS, "-q")
        assert done.code == 0, (what, done.err)
        assert weights(root) == expected, what
        assert leftovers(root) == [], what
