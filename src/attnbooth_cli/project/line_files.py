"""Text files with one thing a line: prompts, or projects. Never imports torch."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from attnbooth_cli.errors import InputError

MAX_CHARACTERS = 10_000_000
"""Of a file."""


def read_lines(path: Path, form: str) -> list[str]:
    """The lines of a text file, without the blanks around them; blank ones and those that begin with # do not count.

    Args:
        form: What the file should look like, for the hint.

    Raises:
        InputError: unreadable, too large, not text, or with a control character; that with its line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # at most so much of a device or a pipe, whose size nobody knows
            text = file.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text", form) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", None) from None
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{path} has more than {MAX_CHARACTERS // 1_000_000} million characters", form)
    for number, line in enumerate(text.split("\n"), 1):
        if any(unicodedata.category(character) == "Cc" and character != "\t" for character in line):
            raise InputError(f"{path} has a control character in line {number}", form)
    return [line.strip() for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
