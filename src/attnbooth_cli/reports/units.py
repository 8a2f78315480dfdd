"""Quantities in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`75` -> "1 min 15 s"."""
    if seconds < 1:
        return "under a second"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
