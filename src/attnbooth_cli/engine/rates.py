"""How fast this computer was the last time: operations of the U-Net a second, by device and precision.

Noted in the user's cache after every stage, so that `--dry-run` can tell how long a run will take without beginning it.
Never imports torch.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from attnbooth_cli.engine.machine import cache_folder
from attnbooth_cli.project import durable
from attnbooth_cli.project.documents import read_json_object


@dataclass(frozen=True)
class Rate:
    """A measured rate.

    Attributes:
        place: Device and precision, such as "cpu float32".
        model: The base model it was measured with; small ones are slower by the operation.
        operations: Floating-point operations of the U-Net a second, everything a step does included in its time.
        noted: When, in seconds since 1970.
    """

    place: str
    model: str
    operations: float
    noted: float


def rates_file() -> Path:
    """Where rates are noted."""
    return cache_folder() / "rates.json"


def note(place: str, model: str, operations: float) -> None:
    """Notes a rate; a cache that cannot be written is done without."""
    file = rates_file()
    rate = Rate(place, model, operations, time.time())
    known = read_json_object(file) or {}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(file, {**known, f"{place} {model}": asdict(rate)})


def newest(device: str | None, model: str) -> Rate | None:
    """The rate noted last: of this base model if there is one, and on this device unless that is None."""
    found = []
    for document in (read_json_object(rates_file()) or {}).values():
        with contextlib.suppress(TypeError, ValueError):
            rate = Rate(**document)
            if device in (None, rate.place.split()[0]) and float(rate.operations) > 0:
                found.append((rate.model == model, float(rate.noted), rate))
    return max(found, key=lambda its: its[:2])[2] if found else None
