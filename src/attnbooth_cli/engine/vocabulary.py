"""What a small base model knows, so that what it does not know can be said at once.

A full-size tokenizer spells any word from pieces its model has met. The bundled model's was learned from the captions
of its own world: each of their words is one piece, and any other word a heap of letters that mean nothing to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from attnbooth_cli.engine.catalogue import Entry
from attnbooth_cli.events import Emit, Warned

SMALL = 10_000
"""Tokenizers with fewer pieces know few words (our choice; CLIP's has 49,408, the bundled one 871)."""


def unknown_words(tokenizer: Any, text: str) -> tuple[str, ...]:
    """The words of a text that a small tokenizer has only in pieces; none for a full-size one."""
    if len(tokenizer) >= SMALL:
        return ()
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", text.lower()))
    return tuple(word for word in words if len(tokenizer.tokenize(word)) != 1)


def warn_of_unknown_words(tokenizer: Any, token: str, prompts: Sequence[str], emit: Emit) -> None:
    """Says once for each prompt which of its words mean nothing to the base model.

    Args:
        token: The text that stands for the concept, which is known.
        prompts: As the person wrote them.
    """
    for prompt in dict.fromkeys(prompts):
        words = unknown_words(tokenizer, prompt.replace("{}", " ").replace(token, " "))
        if words:
            where = f" (in {prompt!r})" if len(prompts) > 1 else ""
            emit(Warned(f"the base model does not know {', '.join(map(repr, words))}{where}"))


def is_known(entry: Entry, category: str) -> bool:
    """Whether a category ends in a noun the model was trained on; all do for a model that lists none."""
    return not entry.nouns or any(f" {category}".endswith(f" {noun}") for noun in entry.nouns)


def known_nouns(entry: Entry, category: str) -> str | None:
    """What could stand in a category's place: nouns that are spelled alike, and all that the model lists."""
    if not entry.nouns:
        return None
    alike = difflib.get_close_matches(category, entry.nouns, 2, cutoff=0.7)
    meant = f"did you mean {' or '.join(alike)}? " if alike else ""
    return f"{meant}{entry.name} knows: {', '.join(entry.nouns)}"
