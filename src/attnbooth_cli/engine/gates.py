"""What scores must reach: `eval --min-identity`, `--min-text`, `--max-drift`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from attnbooth_cli.errors import GateError, InputError


@dataclass(frozen=True)
class Gates:
    """Bounds that were given; None for none.

    Raises:
        InputError: a bound that no number can be compared with, or one on a drift that is not measured.
    """

    min_identity: float | None = None
    min_text: float | None = None
    max_drift: float | None = None
    drift_is_measured: bool = True

    def __post_init__(self) -> None:
        bounds = (self.min_identity, self.min_text, self.max_drift)
        if any(bound is not None and not isfinite(bound) for bound in bounds):
            raise InputError("a gate must be a number, not nan or infinite", "cosines lie between -1 and 1")
        if self.max_drift is not None and not self.drift_is_measured:
            raise InputError("--max-drift needs the drift that --no-drift leaves out", "leave out one of them")

    def check(self, identity: float, text: float, drift: float | None, *, of_concept: bool = True) -> None:
        """Compares scores with the bounds.

        Args:
            of_concept: Whether they are of `concept/`, and not of a snapshot where there is none.

        Raises:
            GateError: one is not met; the message says by how much. A snapshot meets none.
        """
        if not of_concept and (self.min_identity, self.min_text, self.max_drift) != (None, None, None):
            raise GateError("there is no concept/ to hold to the gates, only snapshots", "attnbooth take, or resume")
        missed = [
            f"{name} is {score:.4f}, {bound - score:.4g} below the gate of {bound:g}"
            for name, score, bound in (("identity", identity, self.min_identity), ("text", text, self.min_text))
            if bound is not None and not score >= bound  # nan meets no gate
        ]
        if self.max_drift is not None and drift is None:
            missed.append("drift could not be measured")
        elif self.max_drift is not None and drift is not None and not drift <= self.max_drift:
            missed.append(f"drift is {drift:.4f}, {drift - self.max_drift:.4g} above the gate of {self.max_drift:g}")
        if missed:
            raise GateError("; ".join(missed), "look at the pictures: attnbooth generate PROJECT PROMPT -n 4 --grid")
