"""Whatever file-system call a command dies at, or fails at, nothing is lost.

The suite tries a few of all calls, others every day; `python -m benchmarks.soak faults` tries all of them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.reliability.faults import Kind, spread
from tests.reliability.scenarios import SCENARIOS, Trial, make_starts

TODAY = datetime.now(UTC).toordinal()
TRIED = {"init": 3, "train": 1, "resume": 1, "generate": 2, "eval": 1}


@pytest.fixture(scope="module")
def starts(engine_loaded: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from attnbooth_cli.cli.app import run
    from tests.conftest import Outcome

    return make_starts(
        tmp_path_factory.mktemp("starts"), lambda *arguments: Outcome(run([*map(str, arguments)]), "", "")
    )


@pytest.mark.parametrize("kind", ["dies", "is full"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost(
    cli: Cli, few_steps: None, starts: dict[str, Path], tmp_path: Path, name: str, kind: Kind
) -> None:
    trial = Trial(SCENARIOS[name], starts, tmp_path / "tried" / "p", cli)
    calls, expected = trial.undisturbed(kind)
    for number in spread(len(calls), TRIED[name], TODAY):
        trial.disturbed(number, kind, expected)
