"""CoRe (Wu et al. 2024), an addition to stage 1: the words around [V] should mean what they mean around the category.

A prompt that no picture goes with is encoded twice, with [V] and with the category in its place. Everywhere else, up to
the end of the prompt, the text encoder's outputs and the means of the cross-attention maps of the two should agree.
Sums, means and which tokens count are those of the authors' code (pangy9/CoRe, train.py and utils.py).

    m samples   n tokens other than [V]'s (padded)   d width of the text encoder
"""

from __future__ import annotations

import contextlib
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


def embedding_regularisation(of_token: Tensor, of_category: Tensor, shares: Tensor) -> Tensor:
    """Sum over samples of mean_i (1 - cos(e_i, e'_i)), a scalar (CoRe, equation 3).

    Args:
        of_token, of_category: [m, n, d], the two encodings at the tokens that are compared.
        shares: [m, n], what each token counts in its sample's mean: one by their number, and 0 for padding.
    """
    similarity = F.cosine_similarity(at_least_float32(of_token), at_least_float32(of_category), dim=-1)  # [m, n]
    return (shares * (1 - similarity)).sum()


def attention_regularisation(of_token: Sequence[Tensor], of_category: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Mean over layers of the sum over samples of mean_i (mu_i - mu'_i)^2, a scalar (CoRe, equation 4).

    Args:
        of_token, of_category: A layer each: [m, n], means over heads and positions of the tokens' maps.
        shares: [m, n], as above.
    """
    squares = (torch.stack(list(of_token)) - torch.stack(list(of_category))).square()  # [l, m, n]
    return (shares * squares).sum(dim=(1, 2)).mean()


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
    about_token, about_category = (
        [text.replace("{}", phrase) for text in prompts] for phrase in (" ".join(concept.tokens), concept.category)
    )
    with substituted_rows(encoder.model, placeholder_ids(encoder.tokenizer, concept), rows):
        told = encode(components, about_token)
    with torch.no_grad():
        reference = encode(components, about_category)
    length = told["encoder_hidden_states"].shape[1]
    spans = len(concept.tokens), len(category_pieces(encoder.tokenizer, concept.category))
    starts = [len(encoder.tokenizer(text.partition("{}")[0]).input_ids) - 1 for text in prompts]
    sizes = [
        min(min(len(ids), length) - span for ids, span in zip(both, spans, strict=True))
        for both in zip(*(encoder.tokenizer(texts).input_ids for texts in (about_token, about_category)), strict=True)
    ]
    around, around_category = (_around(starts, span, sizes).to(rows.device) for span in spans)  # [m, n]
    shares = _shares(sizes).to(rows.device)
    of_encodings = embedding_regularisation(
        _picked(told["encoder_hidden_states"], around),
        _picked(reference["encoder_hidden_states"], around_category),
        shares,
    )
    total = weights[0] * of_encodings
    if not weights[1]:
        yield total
        return
    with torch.no_grad(), _means(components, noisy, timesteps, reference, around_category) as expected:
        pass
    with _means(components, noisy, timesteps, told, around) as means:
        yield total + weights[1] * attention_regularisation(means, expected, shares)


@contextlib.contextmanager
def _means(
    components: Any, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], tokens: Tensor
) -> Iterator[list[Tensor]]:
    """The mean attention over heads and positions in one U-Net pass, a layer each: [m, n], of the tokens [m, n].

    The readers stay for the block; what they read there is computed and not kept, which would keep its graph alive.
    """
    layers: list[Tensor] = []
    forward = True

    def read(_layer: str, attn: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        mean = at_least_float32(attention_probabilities(attn, query, key, mask)).mean(dim=(1, 2))  # [m, t]
        picked = mean.gather(1, tokens)
        if forward:
            layers.append(picked)

    with processors(components.unet, lambda name: ReadingProcessor(name, read)):
        components.unet(noisy, timesteps, **conditioning, return_dict=False)
        forward = False
        yield layers


def _around(starts: Sequence[int], span: int, sizes: Sequence[int]) -> Tensor:
    """Of each sample, so many positions without the `span` of them from `start` on; padded with 0: [m, n]."""
    widest = max(sizes)
    rows = [[k + span * (k >= start) for k in range(size)] for start, size in zip(starts, sizes, strict=True)]
    return torch.tensor([row + [0] * (widest - len(row)) for row in rows])


def _shares(sizes: Sequence[int]) -> Tensor:
    """What each token counts in its sample's mean: [m, n]."""
    return torch.tensor([[1 / size] * size + [0.0] * (max(sizes) - size) for size in sizes])


def _picked(encodings: Tensor, tokens: Tensor) -> Tensor:
    """[m, t, d] at the tokens [m, n]: [m, n, d]."""
    return encodings.gather(1, tokens.unsqueeze(2).expand(-1, -1, encodings.shape[2]))
