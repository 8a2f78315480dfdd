"""Versions of a project's files: an older one is brought up to date as it is read, a newer one refused untouched.

Nothing is rewritten for its version's sake: the old file stays until the command would have replaced it anyway.
Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from attnbooth_cli.errors import InputError

Kind = Literal["manifest", "state", "plan", "checkpoint", "concept"]
Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes a document of the next schema; it may change its argument."""

MIGRATIONS: dict[Kind, tuple[Migration, ...]] = {
    "manifest": (),
    "state": (),
    "plan": (),
    "checkpoint": (),
    "concept": (),
}
"""Of each kind the way from schema 1 to the present one, a step for each schema: adding a step makes a new schema."""


MOST = 1_000_000
"""Beyond it, a number is no version."""


def present(kind: Kind) -> int:
    """The schema this version writes."""
    return len(MIGRATIONS[kind]) + 1


def up_to_date(kind: Kind, document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`document` in the present schema.

    Args:
        path: Where it was read, for the message.

    Raises:
        InputError: a newer version wrote it.
        ValueError: its schema is no version at all.
    """
    schema = document.get("schema")
    if type(schema) is not int or not 1 <= schema <= MOST:
        raise ValueError("it has no schema")
    if schema > present(kind):
        raise InputError(
            f"{path} has schema {schema}; this attnbooth reads up to {present(kind)}",
            "upgrade attnbooth; nothing was changed",
        )
    changed = dict(document)
    for migrate in MIGRATIONS[kind][schema - 1 :]:
        changed = migrate(changed)
    return {**changed, "schema": present(kind)}
