"""What one picture shows, before it is worded or painted: the record that captions, pixels and labels all come from."""

from __future__ import annotations

from dataclasses import dataclass

from tools.tiny.instances import Instance


@dataclass(frozen=True)
class Thing:
    """An instance as a caption would call it: its noun and, where that is part of its paint, a colour word."""

    noun: str
    instance: Instance
    colour: str | None = None


@dataclass(frozen=True)
class Depiction:
    """A picture to be. `size` is a key of `SIZES` or None; `companion` stands beside the main thing."""

    thing: Thing
    scene: str
    style: str
    size: str | None = None
    companion: Thing | None = None
