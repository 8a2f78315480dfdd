"""Processes that are killed without notice, at random moments; `python -m benchmarks.soak kills` kills 200."""

from __future__ import annotations

import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

from tests.conftest import Cli, leftovers, weights
from tests.reliability.processes import finished, kills
from tests.reliability.scenarios import declared_two_steps

TODAY = datetime.now(UTC).toordinal()


def test_nothing_is_lost_by_kills(cli: Cli, project: Path, tmp_path: Path) -> None:
    declared_two_steps(project)
    whole = Path(shutil.copytree(project, tmp_path / "whole"))
    assert finished(tmp_path / "said.txt", "train", whole, "-q") == 0
    expected, number = weights(whole), iter(range(1000))

    def begin() -> Path:
        return Path(shutil.copytree(project, tmp_path / f"p{next(number)}"))

    def check(root: Path) -> None:
        assert weights(root) == expected, f"seed {TODAY}"
        assert cli("status", root).code == 0
        assert [path for path in leftovers(root) if "samples" not in path] == []

    assert kills(20, random.Random(TODAY), begin, check) >= 2
