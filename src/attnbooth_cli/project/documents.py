"""JSON documents from disk, whoever wrote them: a file that cannot be one is told apart, and never waited for.

And tables as CSV.
"""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 100_000_000


def read_text(path: Path, *, errors: str = "strict") -> str:
    """The text in a file.

    Args:
        errors: What to do about bytes that are not UTF-8, as `bytes.decode` takes it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain file, too large for a document, or not UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file")  # a pipe would be waited for
    if status.st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 1_000_000} MB")
    return path.read_text(encoding="utf-8", errors=errors)


def read_document(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain file, too large for a document, not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_object(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if the file is missing or anything else."""
    try:
        document = read_document(path)
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as CSV: a header, which is the first row's keys, and a line for every row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
