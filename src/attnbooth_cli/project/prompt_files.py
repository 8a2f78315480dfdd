"""Text files of prompts, one a line. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from attnbooth_cli.errors import InputError
from attnbooth_cli.project.line_files import read_lines


def read_prompts(path: Path) -> list[str]:
    """Prompts from a text file: one a line; blank lines and lines that begin with # do not count.

    Raises:
        InputError: unreadable, too large, or without any prompt.
    """
    prompts = read_lines(path, "one prompt a line")
    if not prompts:
        raise InputError(f"{path} holds no prompt", "one a line, for example: a photo of a {} on a beach")
    return prompts
