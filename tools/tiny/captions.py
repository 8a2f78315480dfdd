"""The grammar of captions.

    caption  = [opening] phrase [relation phrase] [scene] ["in the style of" manner]
    phrase   = determiner [filler] [size] [colour] [pattern] noun

Every caption is true of its picture; what it leaves out (a scene, a pattern) is there all the same, so that a short
prompt such as "a photo of a cat" asks for any cat anywhere. `ordinary` gives the fullest plain wording, for prompts.
"""

from __future__ import annotations

import numpy as np

from tools.tiny.depiction import Depiction, Thing
from tools.tiny.objects import COLOURS, NOUNS, PATTERNS, SIZES
from tools.tiny.scenes import ALL_SCENES
from tools.tiny.styles import STYLES

RELATIONS = ("next to", "beside", "and")
FILLERS = ("nice", "cute", "cool", "clean", "dirty", "weird", "new", "old")
"""Words that say nothing about the picture: people write them, and a word before the noun must not disturb it."""
CLOSE_UP = "a close-up photo of"
TEMPERS = ("a bright photo of", "a dark photo of")
"""Openings of photos that say nothing about the picture either."""


def article(words: str) -> str:
    """ "a" or "an", by the first letter."""
    return "an" if words[0] in "aeiou" else "a"


def _pick(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[rng.integers(len(words))]


def _phrase(thing: Thing, size: str | None, rng: np.random.Generator) -> str:
    words: list[str] = []
    if rng.random() < 0.06:
        words.append(_pick(FILLERS, rng))
    if size is not None:
        words.append(_pick(SIZES[size], rng))
    if thing.colour is not None:
        words.append(thing.colour)
    if thing.instance.pattern in PATTERNS and rng.random() < 0.6:
        words.append(PATTERNS[thing.instance.pattern])
    described = " ".join([*words, thing.noun])
    luck = rng.random()
    determiner = article(described) if luck < 0.76 else "the" if luck < 0.88 else "my" if luck < 0.96 else "one"
    return f"{determiner} {described}"


def caption(depiction: Depiction, rng: np.random.Generator) -> str:
    """One of the many true captions of `depiction`."""
    style, size = STYLES[depiction.style], depiction.size
    parts: list[str] = []
    behind = style.manner is not None and rng.random() < 0.2
    if depiction.style == "photo":
        luck = rng.random()
        if size == "large" and luck < 0.4:
            parts, size = [CLOSE_UP], None
        elif luck < 0.46:
            parts = [_pick(TEMPERS, rng)]
        elif luck < 0.9:
            parts = [_pick(style.openings, rng)]
    elif not behind:
        parts = [_pick(style.openings, rng)]
    parts.append(_phrase(depiction.thing, size, rng))
    if depiction.companion is not None:
        parts += [_pick(RELATIONS, rng), _phrase(depiction.companion, None, rng)]
    if rng.random() < 0.9:
        parts.append(_pick(ALL_SCENES[depiction.scene].phrases, rng))
    if behind:
        parts.append(f"in the style of {style.manner}")
    return " ".join(parts)


def ordinary(described: str, scene: str | None, style: str) -> str:
    """The plain prompt for `described` (article left to this function): first opening, first phrase of the scene."""
    place = "" if scene is None else f" {ALL_SCENES[scene].phrases[0]}"
    return f"{STYLES[style].openings[0]} {article(described)} {described}{place}"


def vocabulary() -> list[str]:
    """Every phrase of the grammar, so that its words are complete whatever was drawn for a corpus."""
    phrases = [*RELATIONS, *FILLERS, CLOSE_UP, *TEMPERS, "a an the my one", "in the style of", *NOUNS, *COLOURS]
    phrases += [*PATTERNS.values(), *(word for words in SIZES.values() for word in words)]
    phrases += [phrase for scene in ALL_SCENES.values() for phrase in scene.phrases]
    for style in STYLES.values():
        phrases += [*style.openings, *([style.manner] if style.manner else [])]
    return phrases
