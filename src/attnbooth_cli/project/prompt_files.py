"""Text files of prompts, one a line. Never imports torch."""

from __future__ import annotations

from pathlib import Path

from attnbooth_cli.errors import InputError

MAX_PROMPTS_BYTES = 10_000_000


def read_prompts(path: Path) -> list[str]:
    """Prompts from a text file: one a line; blank lines and lines that begin with # do not count.

    Raises:
        InputError: unreadable, too large, or without any prompt.
    """
    try:
        if path.stat().st_size > MAX_PROMPTS_BYTES:
            raise InputError(f"{path} is larger than {MAX_PROMPTS_BYTES // 1_000_000} MB", "one prompt a line")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text", "one prompt a line") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", None) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise InputError(f"{path} holds no prompt", "one a line, for example: a photo of a {} on a beach")
    return prompts
