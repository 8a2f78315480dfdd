"""CoRe (Wu et al. 2024), an addition to stage 1: the words around [V] should mean what they mean around the category.

A prompt that no picture goes with is encoded twice, with [V] and with the category in its place. Everywhere else, the
text encoder's outputs and the cross-attention maps of the two should agree. The authors published no code; sums and
means are those of a public re-implementation of the paper's equations.

    m samples   h heads   p query positions   t prompt tokens   n tokens other than [V]'s   d width of the text encoder
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnbooth_cli.engine.attention import ReadingProcessor, attention_probabilities, processors
from attnbooth_cli.engine.losses import at_least_float32
from attnbooth_cli.engine.tokens import Placeholder, category_pieces, placeholder_ids, substituted_rows

PROMPTS = (
    "a {} in the woods", "a {} on the sand dunes", "a {} on the street", "a {} among flowers", "a {} in the ocean",
    "a {} on green grass", "a {} at sunset", "a {} in winter", "a drawing of a {}", "a painting of a {} at the beach",
    "a {} next to a house", "a {} and a dog", "a sketch of a {} in the city", "a small {} under the stars",
    "a {} beside a tree", "a pink {}", "a {} in the style of pixel art", "a {} in the mountains",
    "a {} on a table in the kitchen", "a {} wearing a hat", "a {} inside a cardboard box", "a {} made of wood",
    "a {} in front of the Eiffel Tower", "a crowded market with a {}",
)  # fmt: skip
"""Prompts of our own, one of which is drawn for each sample; none of them is an evaluation prompt."""


def embedding_regularisation(of_token: Tensor, of_category: Tensor) -> Tensor:
    """Sum over samples of mean_i (1 - cos(e_i, e'_i)), a scalar.

    Args:
        of_token, of_category: [m, n, d], the two encodings without [V]'s and the category's tokens.
    """
    similarity = F.cosine_similarity(at_least_float32(of_token), at_least_float32(of_category), dim=-1)  # [m, n]
    return (1 - similarity).mean(dim=1).sum()


def attention_regularisation(of_token: Sequence[Tensor], of_category: Sequence[Tensor]) -> Tensor:
    """Sum over samples and positions of the mean over tokens of (A - A')^2, a scalar.

    A is the mean over layers of the maps at the smallest layer's size (bilinear).

    Args:
        of_token, of_category: A layer each: [m, p, n], means over heads.
    """
    side = min(math.isqrt(layer.shape[1]) for layer in of_token)
    return (_mean_map(of_token, side) - _mean_map(of_category, side)).square().mean(dim=1).sum()


@contextlib.contextmanager
def context_regularisation(
    components: Any,
    concept: Placeholder,
    rows: Tensor,
    prompts: Sequence[str],
    noisy: Tensor,
    timesteps: Tensor,
    weights: tuple[float, float],
) -> Iterator[Tensor]:
    """Both terms with their weights, each a sum over samples; a float32 scalar with gradients to `rows`, for the block.

    Gradient checkpointing computes the U-Net once more in the backward pass, and must find the same readers in it then:
    so that pass belongs into the block.

    Args:
        rows: [v, d], the embedding of [V].
        prompts: m prompts with `{}` for what is exchanged.
        noisy, timesteps: [m, c, h, w] and [m], what the U-Net looks at.
        weights: Of the encodings and of the maps; with 0 for the maps the U-Net is not run.
    """
    from attnbooth_cli.engine.families import FAMILIES

    (encoder,) = components.text_encoders
    encode = FAMILIES[components.family].encode
    with substituted_rows(encoder.model, placeholder_ids(encoder.tokenizer, concept), rows):
        told = encode(components, [text.replace("{}", " ".join(concept.tokens)) for text in prompts])
    with torch.no_grad():
        reference = encode(components, [text.replace("{}", concept.category) for text in prompts])
    length = told["encoder_hidden_states"].shape[1]
    starts = [len(encoder.tokenizer(text.partition("{}")[0]).input_ids) - 1 for text in prompts]
    pieces = len(category_pieces(encoder.tokenizer, concept.category))
    kept = min(length - len(concept.tokens), length - pieces)
    around = _around(starts, len(concept.tokens), length)[:, :kept].to(rows.device)  # [m, n]
    around_category = _around(starts, pieces, length)[:, :kept].to(rows.device)
    of_encodings = embedding_regularisation(
        _picked(told["encoder_hidden_states"], around), _picked(reference["encoder_hidden_states"], around_category)
    )
    total = weights[0] * of_encodings
    if not weights[1]:
        yield total
        return
    with torch.no_grad(), _maps(components, noisy, timesteps, reference, around_category) as expected:
        pass
    with _maps(components, noisy, timesteps, told, around) as maps:
        yield total + weights[1] * attention_regularisation(maps, expected)


@contextlib.contextmanager
def _maps(
    components: Any, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], tokens: Tensor
) -> Iterator[list[Tensor]]:
    """The maps of one U-Net pass, a layer each: [m, p, n], means over heads, of the tokens [m, n] of each sample.

    The readers stay for the block; what they read there is computed and not kept, which would keep its graph alive.
    """
    layers: list[Tensor] = []
    forward = True

    def read(_layer: str, attn: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        mean = attention_probabilities(attn, query, key, mask).mean(dim=1)  # [m, p, t]
        picked = mean.gather(2, tokens.unsqueeze(1).expand(-1, mean.shape[1], -1))
        if forward:
            layers.append(picked)

    with processors(components.unet, lambda name: ReadingProcessor(name, read)):
        components.unet(noisy, timesteps, **conditioning, return_dict=False)
        forward = False
        yield layers


def _mean_map(layers: Sequence[Tensor], side: int) -> Tensor:
    """[m, n, side, side]."""
    squares = []
    for layer in layers:
        height = math.isqrt(layer.shape[1])
        maps = layer.transpose(1, 2).reshape(len(layer), -1, height, height)
        squares.append(F.interpolate(maps, (side, side), mode="bilinear"))
    return torch.stack(squares).mean(dim=0)


def _around(starts: Sequence[int], count: int, length: int) -> Tensor:
    """Every position but `count` of them from `start` on: [m, length - count]."""
    return torch.tensor([[*range(start), *range(start + count, length)] for start in starts])


def _picked(encodings: Tensor, tokens: Tensor) -> Tensor:
    """[m, t, d] at the tokens [m, n]: [m, n, d]."""
    return encodings.gather(1, tokens.unsqueeze(2).expand(-1, -1, encodings.shape[2]))
