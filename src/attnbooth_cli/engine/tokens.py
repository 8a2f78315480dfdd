"""[V]: its tokens, its embedding rows, and where it stands in a prompt.

With several vectors the token `<my-cat>` stands for `<my-cat> <my-cat>_1 ...`, the names diffusers'
`load_textual_inversion` gives them, so a concept means the same in plain diffusers.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnbooth_cli.errors import InputError

MIN_PIECE_LENGTH = 2.0
"""A word whose pieces average fewer characters than this is a word the tokenizer does not know (our choice)."""


@dataclass(frozen=True)
class Placeholder:
    """[V] and its category C.

    Attributes:
        token: The text that stands for [V] in prompts, such as `<my-cat>`.
        tokens: One tokenizer entry per embedding row.
        category: The super-category, such as `cat`.
        with_category: Whether `{}` means `[V] C` or [V] alone.
    """

    token: str
    tokens: tuple[str, ...]
    category: str
    with_category: bool = True

    def prompt(self, prompt: str) -> str:
        """Replaces `{}` by `[V] C` or [V], and [V] by all of its tokens.

        Raises:
            InputError: the prompt names no concept.
        """
        text = prompt.replace("{}", f"{self.token} {self.category}" if self.with_category else self.token)
        if self.token not in text:
            raise InputError(
                f"the prompt {_short(prompt)!r} does not name the concept",
                f'put {{}} where it goes, as in "a photo of a {{}} on a beach" (or write {self.token})',
            )
        return text.replace(self.token, " ".join(self.tokens))


def placeholder(token: str, vectors: int, category: str, with_category: bool = True) -> Placeholder:
    """The placeholder of a concept with `vectors` embedding rows."""
    return Placeholder(token, (token, *(f"{token}_{i}" for i in range(1, vectors))), category, with_category)


def category_pieces(tokenizer: Any, category: str, instead: str | None = None) -> tuple[str, ...]:
    """The tokenizer's pieces of a category; [V] starts from, and is compared with, the first.

    Args:
        instead: What to choose in place of one that is not known, if that can be said.

    Raises:
        InputError: a word that the tokenizer only knows as single characters.
    """
    for word in category.split():
        pieces = tokenizer.tokenize(word)
        if (len(pieces) > 1 and len(word) / len(pieces) < MIN_PIECE_LENGTH) or not pieces:
            raise InputError(
                f"the base model's tokenizer does not know the category {category!r} "
                f"({word} becomes {' + '.join(map(_readable, pieces)) or 'nothing'})",
                f"choose another with --category; {instead}"
                if instead
                else "choose a more common noun with --category",
            )
    return tuple(_readable(piece) for piece in tokenizer.tokenize(category))


def knows(tokenizer: Any, text: str) -> bool:
    """Whether a tokenizer has every word of `text` in pieces larger than single characters."""
    pieces = {word: tokenizer.tokenize(word) for word in text.split()}
    return all(len(its) == 1 or len(word) / max(len(its), 1) >= MIN_PIECE_LENGTH for word, its in pieces.items())


def add_placeholder(tokenizer: Any, text_encoder: Any, concept: Placeholder, initial: str | None = None) -> Tensor:
    """Adds [V] to the tokenizer and the embedding table.

    Args:
        initial: The word whose first piece every row starts as; the category by default.

    Returns:
        The rows' initial values, [n, d] float32.

    Raises:
        InputError: the tokenizer has such a token already.
    """
    require_new_token(tokenizer, concept)
    (first_id, *_) = tokenizer(initial or concept.category, add_special_tokens=False).input_ids
    tokenizer.add_tokens(list(concept.tokens))
    table = text_encoder.get_input_embeddings()
    if len(tokenizer) > table.num_embeddings:
        text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    first_row = text_encoder.get_input_embeddings().weight[first_id].detach().float()
    rows: Tensor = first_row.expand(len(concept.tokens), -1).clone()
    write_rows(tokenizer, text_encoder, concept, rows)
    return rows


def require_new_token(tokenizer: Any, concept: Placeholder) -> None:
    """Refuses a token that the base model's tokenizer has already.

    Raises:
        InputError: it exists.
    """
    vocabulary = tokenizer.get_vocab()
    taken = [token for token in concept.tokens if token in vocabulary]
    if taken:
        raise InputError(
            f"the token {taken[0]} already exists in the base model's tokenizer",
            "choose another with --token (or [concept] token in attnbooth.toml)",
        )


def placeholder_ids(tokenizer: Any, concept: Placeholder) -> list[int]:
    """The token ids of [V], one a row."""
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(concept.tokens))
    return ids


def write_rows(tokenizer: Any, text_encoder: Any, concept: Placeholder, rows: Tensor) -> None:
    """Puts [n, d] rows into the text encoder's embedding table."""
    weight = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[placeholder_ids(tokenizer, concept)] = rows.detach().to(weight)


@contextlib.contextmanager
def substituted_rows(text_encoder: Any, ids: Sequence[int], rows: Tensor) -> Iterator[None]:
    """Lets `rows` [n, d] take the place of the embeddings of `ids` during the block, differentiably.

    The embedding table itself stays frozen, so only n rows have gradients, optimiser state and weight decay.
    """

    def substitute(_module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (input_ids,) = arguments
        for token_id, row in zip(ids, rows, strict=True):
            output = torch.where((input_ids == token_id).unsqueeze(-1), row.to(output.dtype), output)
        return output

    handle = text_encoder.get_input_embeddings().register_forward_hook(substitute)
    try:
        yield
    finally:
        handle.remove()


def maximum_length(tokenizer: Any, text_encoder: Any) -> int:
    """How many tokens a prompt may have, start and end included."""
    return min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))


def recorded_positions(tokenizer: Any, concept: Placeholder, text: str, length: int) -> list[int]:
    """The positions of [V] in a prompt, then the position right after the last of them (the category's first piece).

    Args:
        text: A prompt from `Placeholder.prompt`.
        length: The text encoder's number of positions.

    Raises:
        InputError: [V] or the token after it is cut off.
    """
    input_ids = tokenizer(text).input_ids
    wanted = set(placeholder_ids(tokenizer, concept))
    positions = [position for position, token_id in enumerate(input_ids) if token_id in wanted][: len(wanted)]
    if len(positions) < len(wanted) or positions[-1] + 2 >= length:
        raise InputError(f"the prompt {_short(text)!r} is too long: the concept is cut off", "move the concept forward")
    return [*positions, positions[-1] + 1]


def check_length(tokenizer: Any, concept: Placeholder, text: str, length: int) -> str | None:
    """Checks that a prompt fits.

    Returns:
        A warning that names the words that are cut off, or None.

    Raises:
        InputError: [V] itself is cut off.
    """
    input_ids = tokenizer(text).input_ids
    if len(input_ids) <= length:
        return None
    kept = input_ids[: length - 1]
    if not set(placeholder_ids(tokenizer, concept)) <= set(kept):
        raise InputError(
            f"the prompt {_short(text)!r} has {len(input_ids)} tokens, the model reads {length}: "
            "the concept is cut off",
            "shorten the prompt, or move {} forward",
        )
    lost = tokenizer.decode(input_ids[length - 1 : -1])
    return f"the prompt is too long for the model, which does not see: {_short(lost)}"


def _short(text: str) -> str:
    return textwrap.shorten(text, 200, placeholder=" ...")


def _readable(piece: str) -> str:
    return piece.removesuffix("</w>")
