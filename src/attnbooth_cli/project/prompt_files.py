"""Text files of prompts, one a line. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from attnbooth_cli.errors import InputError

MAX_PROMPTS = 10_000_000
"""Characters of a file."""


def read_prompts(path: Path) -> list[str]:
    """Prompts from a text file: one a line; blank lines and lines that begin with # do not count.

    Raises:
        InputError: unreadable, too large, or without any prompt.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # at most so much of a device or a pipe, whose size nobody knows
            text = file.read(MAX_PROMPTS + 1)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text", "one prompt a line") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", None) from None
    if len(text) > MAX_PROMPTS:
        raise InputError(f"{path} has more than {MAX_PROMPTS // 1_000_000} million characters", "one prompt a line")
    prompts = [line.strip() for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise InputError(f"{path} holds no prompt", "one a line, for example: a photo of a {} on a beach")
    return prompts
