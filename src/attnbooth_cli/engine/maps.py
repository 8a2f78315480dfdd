"""Cross-attention maps of words, averaged over heads and steps while a picture is made (as DAAM, Tang et al. 2022).

Only the asked-for columns are computed, beside the fused kernel, and reduced at once: one running map a layer.
Letters in shapes: b samples, h heads, p query positions, c columns, y and x latent positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnbooth_cli.engine.tokens import Placeholder
from attnbooth_cli.errors import InputError


@dataclass(frozen=True)
class Word:
    """A word of a prompt and the token positions it covers; [V] is one word whatever its number of tokens."""

    text: str
    positions: tuple[int, ...]


@dataclass
class MapRecorder:
    """Sums the probabilities of `columns` of the conditional half, per layer, over heads and calls.

    Attributes:
        latent_size: (height, width) of the latents.
    """

    columns: tuple[int, ...]
    latent_size: tuple[int, int]
    sums: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, layer: str, probabilities: Tensor) -> None:
        """Takes [b, h, p, c]; with guidance the second half of the batch is the conditional one."""
        conditional = probabilities[probabilities.shape[0] // 2 :] if probabilities.shape[0] > 1 else probabilities
        height, width = map_size(conditional.shape[2], self.latent_size)
        reduced = conditional.float().mean(dim=(0, 1)).T.reshape(-1, height, width)  # [c, y, x]
        self.sums[layer] = self.sums[layer] + reduced if layer in self.sums else reduced
        self.calls[layer] = self.calls.get(layer, 0) + 1

    def layer_maps(self) -> dict[str, Tensor]:
        """[c, y, x] mean probability a layer, on the CPU."""
        return {layer: (total / self.calls[layer]).cpu() for layer, total in self.sums.items()}


def map_size(positions: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer with that many query positions: the latent size, halved as often as it takes."""
    height, width = latent_size
    while height * width > positions:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    if height * width != positions:
        raise ValueError(f"{positions} positions do not fit latents of {latent_size}")
    return height, width


def word_maps(
    recorder: MapRecorder, words: Sequence[Word], resolution: int | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """One [y, x] map a word at the latents' size: the mean over its tokens, over layers and over steps.

    Args:
        resolution: Only layers whose map has this height; all of them for None.

    Returns:
        Maps by word, and the names of the layers that were used.

    Raises:
        InputError: no layer has that resolution.
    """
    layers = recorder.layer_maps()
    chosen = {name: maps for name, maps in layers.items() if resolution in (None, maps.shape[1])}
    if not chosen:
        sizes = sorted({maps.shape[1] for maps in layers.values()})
        raise InputError(
            f"no cross-attention layer has resolution {resolution}", f"choose one of {', '.join(map(str, sizes))}"
        )
    enlarged = torch.stack(
        [
            F.interpolate(maps.unsqueeze(0), size=recorder.latent_size, mode="bicubic", align_corners=False)[0]
            for maps in chosen.values()
        ]
    ).clamp_min(0)  # [l, c, y, x]; bicubic may undershoot
    mean = enlarged.mean(dim=0)
    place = {column: index for index, column in enumerate(recorder.columns)}
    return {word.text: mean[[place[p] for p in word.positions]].mean(dim=0) for word in words}, tuple(chosen)


def find_words(
    tokenizer: Any, concept: Placeholder, prompt: str, length: int, wanted: Sequence[str]
) -> tuple[Word, ...]:
    """The words of a prompt with their token positions; a word that stands twice counts where it stands first.

    Args:
        prompt: As `Placeholder.prompt` gives it.
        length: The text encoder's number of positions; what lies beyond has no attention.
        wanted: Words to keep, in this order; [V] by its token or as `{}`. All words when empty.

    Raises:
        InputError: a wanted word is not in the prompt, or beyond its end; the message names those that are there.
    """
    found: dict[str, Word] = {}
    for word in _words(tokenizer, concept, prompt):
        if word.positions[-1] < length - 1:
            found.setdefault(word.text.lower(), word)
    names = [concept.token if name == "{}" else name for name in wanted]
    for name in names:
        if name.lower() not in found:
            raise InputError(
                f"the model sees no word {name!r} in the prompt",
                f"it sees: {', '.join(w.text for w in found.values())}",
            )
    return tuple(found[name.lower()] for name in names) if names else tuple(found.values())


def _words(tokenizer: Any, concept: Placeholder, prompt: str) -> Iterator[Word]:
    """Every word without the punctuation around it, which has tokens of its own."""
    spelt_out = " ".join(concept.tokens)
    position = 1  # 0 is the start token
    for text in prompt.replace(spelt_out, f" {concept.token} ").split():
        if text == concept.token:
            pieces = [(text, spelt_out)]
        else:
            pieces = [(piece, piece) for piece in re.findall(r"\w(?:.*\w)?|\W+", text)]
        for word, tokens in pieces:
            count = len(tokenizer(tokens, add_special_tokens=False).input_ids)
            if count and re.search(r"\w", word):
                yield Word(word, tuple(range(position, position + count)))
            position += count
