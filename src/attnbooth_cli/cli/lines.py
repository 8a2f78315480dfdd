"""Lines of a command's result that fit 80 columns."""

from __future__ import annotations

import textwrap

COLUMNS = 80


def folded(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Text over as many lines as it takes; a word that is longer, such as a path, is left whole to be copied.

    Args:
        first: What the first line begins with, already in place.
        rest: What the others begin with; as many blanks by default.
    """
    return textwrap.wrap(
        text,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
