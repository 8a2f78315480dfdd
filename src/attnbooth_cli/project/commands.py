"""Command lines that messages tell people to run, written so that they can be pasted into a shell."""

from __future__ import annotations

import shlex


def command(*words: object) -> str:
    """`attnbooth` and these words, quoted where a shell would read them otherwise."""
    return " ".join(["attnbooth", *(shlex.quote(str(word)) for word in words)])
