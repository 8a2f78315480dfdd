"""The words of a prompt and the tokens they cover.

Every token of the text encoder belongs to exactly one `Word`: a word, or one of the buckets in `BUCKETS`. So the
attention of all of them adds up to one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attnbooth_cli.engine.tokens import Placeholder
from attnbooth_cli.errors import InputError

Kind = Literal["placeholder", "category", "word", "bucket"]
START, PUNCTUATION, END, PADDING = "[start]", "[punctuation]", "[end]", "[padding]"
BUCKETS = (START, PUNCTUATION, END, PADDING)
"""What is no word: the start token, what stands between words, the end token, and the padding after it. Trained
pictures often put most of their attention there (Darcet et al. 2024 call such tokens registers)."""


@dataclass(frozen=True)
class Word:
    """A word of a prompt and the token positions it covers; [V] is one word whatever its number of tokens.

    Attributes:
        text: As it stands in the prompt; the second "a" is "a (2)".
    """

    text: str
    positions: tuple[int, ...]
    kind: Kind = "word"


def words_of(tokenizer: Any, concept: Placeholder, prompt: str, length: int) -> tuple[Word, ...]:
    """Every word the text encoder sees, in order, then the buckets that are not empty.

    Args:
        prompt: As `Placeholder.prompt` gives it; without [V], a plain prompt.
        length: The text encoder's number of positions; what lies beyond has no attention.
    """
    end = min(len(tokenizer(prompt, truncation=True, max_length=length).input_ids), length) - 1
    seen: Counter[str] = Counter()
    words = []
    for text, positions, kind in _words(tokenizer, concept, prompt):
        if positions[-1] < end:
            seen[text.lower()] += 1
            count = seen[text.lower()]
            words.append(Word(text if count == 1 else f"{text} ({count})", positions, kind))
    covered = {position for word in words for position in word.positions}
    places = {
        START: (0,),
        PUNCTUATION: tuple(position for position in range(1, end) if position not in covered),
        END: (end,),
        PADDING: tuple(range(end + 1, length)),
    }
    return (*words, *(Word(name, places[name], "bucket") for name in BUCKETS if places[name]))


def choose(
    words: Sequence[Word], concept: Placeholder, wanted: Sequence[str], *, as_there: bool = False
) -> tuple[Word, ...]:
    """The wanted words in the wanted order; [V] by its token or as `{}`. All of them when nothing is wanted.

    Args:
        as_there: Leave out what is not there, for the same words of another prompt.

    Raises:
        InputError: a wanted word is not in the prompt, or beyond its end; the message names those that are there.
    """
    by_name = {word.text.lower(): word for word in words}
    names = list(dict.fromkeys(concept.token.lower() if name == "{}" else name.lower() for name in wanted))
    if as_there:
        names = [name for name in names if name in by_name] or names
    for name in names:
        if name not in by_name:
            raise InputError(
                f"the model sees no word {name!r} in the prompt", f"it sees: {', '.join(word.text for word in words)}"
            )
    return tuple(by_name[name] for name in names) if names else tuple(words)


def _words(tokenizer: Any, concept: Placeholder, prompt: str) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
    """Every word without the punctuation around it, which has tokens of its own; a category of two words is one."""
    spelt_out, joined = " ".join(concept.tokens), concept.category.replace(" ", _JOINT)
    text = prompt.replace(spelt_out, f" {concept.token} ")
    text = re.sub(rf"(?<!\w){re.escape(concept.category)}(?!\w)", joined, text, flags=re.IGNORECASE)
    position = 1  # 0 is the start token
    for part in text.split():
        pieces = [part] if part == concept.token else re.findall(r"\w(?:.*\w)?|\W+", part)
        for piece in pieces:
            word = piece.replace(_JOINT, " ")
            tokens = spelt_out if piece == concept.token else word
            count = len(tokenizer(tokens, add_special_tokens=False).input_ids)
            if count and re.search(r"\w", word):
                kind: Kind = "placeholder" if piece == concept.token else "word"
                if word.lower() == concept.category.lower():
                    kind = "category"
                yield word, tuple(range(position, position + count)), kind
            position += count


_JOINT = "\N{WORD JOINER}"
"""Stands for the blank of a category of two words: `str.split` does not split there."""
