"""What Ray's workers import in the tests, for `explain`; importing it there makes samples in few steps from then on."""

from __future__ import annotations

import sys
from dataclasses import replace

from attnbooth_cli.cli import failures
from attnbooth_cli.errors import BoothError


def explain(error: Exception) -> BoothError:
    """As the command line does it."""
    return failures.explain(error)


def _is_worker() -> bool:
    ray = sys.modules.get("ray")
    return bool(ray and ray._private.worker.global_worker.mode == ray._private.worker.WORKER_MODE)


if _is_worker():
    from attnbooth_cli.engine import session

    original = session.sampling_settings
    # As many steps as in conftest, which is for main threads and cannot be imported here.
    session.sampling_settings = lambda *a: replace(original(*a), steps=2)
