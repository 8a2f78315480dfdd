"""Where each word of a prompt looks: cross-attention maps, reduced while the U-Net runs (DAAM, Tang et al. 2023).

The probabilities of one layer exist for a moment; kept are a map a word and denoising step, and a few numbers a layer.
A word of several tokens has their sum: what every position of the picture gives to its words adds up to one.

b pictures      h heads         p query positions    t tokens
s steps         w words         l layers             y and x latent positions
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from attnbooth_cli.engine.attention import attention_probabilities
from attnbooth_cli.engine.losses import token_statistics
from attnbooth_cli.engine.words import Word
from attnbooth_cli.errors import InputError

Branch = Literal["conditional", "unconditional"]
POOLING = (
    "mean over cross-attention layers (bicubic to the latents' size), heads and steps; sum over a word's tokens; "
    "softmax in float32"
)


@dataclass(frozen=True)
class Selection:
    """Which probabilities are read.

    Attributes:
        resolution: Only layers whose maps have this height; None for all.
        steps: The first and the last denoising step, from 1; None for all.
        head: Only this one, from 0, of the layers that have so many; None for all.
        branch: Of classifier-free guidance: what the prompt, or the negative prompt, is attended with.
    """

    resolution: int | None = None
    steps: tuple[int, int] | None = None
    head: int | None = None
    branch: Branch = "conditional"


@dataclass(frozen=True)
class Layer:
    """A cross-attention layer that was read, and the size of its maps."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Recording:
    """What was read, on the CPU in float32.

    Attributes:
        steps: [b, s, w, y, x], a map of each word and step.
        share: [b, l, w], the mean over positions, heads and steps of a word's probability; over all words, one.
        mean, variance: [b, l, w], as the regulariser sees a token: over heads and positions jointly, then the mean over
            steps and a word's tokens; nan for buckets.
        gaps: [b, l, 2], the regulariser's two terms before their weights: mean over steps and [V]'s tokens of the
            squared differences of mean and of variance between a token of [V] and the category's first. None where
            the prompt has not both.
    """

    words: tuple[Word, ...]
    layers: tuple[Layer, ...]
    steps: Tensor
    share: Tensor
    mean: Tensor
    variance: Tensor
    gaps: Tensor | None

    @property
    def maps(self) -> Tensor:
        """[b, w, y, x], the mean over steps."""
        return self.steps.mean(dim=1)

    def of(self, picture: int) -> Recording:
        """One picture's part."""
        rows = slice(picture, picture + 1)
        gaps = None if self.gaps is None else self.gaps[rows]
        return Recording(
            self.words,
            self.layers,
            self.steps[rows],
            self.share[rows],
            self.mean[rows],
            self.variance[rows],
            gaps,
        )


@dataclass
class _Sums:
    """Of one layer, over the steps read."""

    layer: Layer
    share: Tensor  # [b, w]
    statistics: Tensor  # [2, b, w]
    gaps: Tensor  # [b, 2]
    calls: int = 0


@dataclass
class MapRecorder:
    """Reads what a `Selection` asks for and reduces it at once; `read` is for `attention.ReadingProcessor`.

    Attributes:
        latent_size: (height, width) of the latents.
        guided: Whether the U-Net's batch holds the unconditional branch, then the conditional one.
        parts: How many pictures the U-Net sees for each sample, the sample first (`prompting.Prompting`).
        pair: The positions of [V]'s tokens and of the category's first; None for no such comparison.
    """

    words: tuple[Word, ...]
    latent_size: tuple[int, int]
    selection: Selection
    guided: bool
    parts: int = 1
    pair: tuple[tuple[int, ...], int] | None = None
    step: int = 1
    _seen: set[tuple[int, int]] = field(default_factory=set)  # height of the map, number of heads
    _layers: dict[str, _Sums] = field(default_factory=dict)
    _now: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by size: this step's sum over layers
    _now_calls: int = 0
    _steps: list[Tensor] = field(default_factory=list)

    def read(self, name: str, attn: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """Takes a layer's query [b, h, p, d] and key [b, h, t, d]."""
        size = map_size(query.shape[2], self.latent_size)
        self._seen.add((size[0], query.shape[1]))
        if not self._wanted(size[0], query.shape[1]):
            return
        rows = self._rows(query.shape[0])
        heads = slice(None) if self.selection.head is None else slice(self.selection.head, self.selection.head + 1)
        mask = None if mask is None else mask.expand(query.shape[0], query.shape[1], -1, -1)[rows, heads]
        self._add(name, size, attention_probabilities(attn, query[rows, heads], key[rows, heads], mask))

    def next_step(self) -> None:
        """Ends a denoising step.

        Raises:
            InputError: after the first one, if no layer has the resolution or the head asked for.
        """
        self._require_layers()
        if self._now_calls:
            total = sum(
                F.interpolate(maps, self.latent_size, mode="bicubic", align_corners=False)
                for maps in self._now.values()
            )
            assert isinstance(total, Tensor)
            self._steps.append((total / self._now_calls).clamp_min(0).cpu())  # bicubic may undershoot
        self._now, self._now_calls = {}, 0
        self.step += 1

    def recording(self) -> Recording:
        """Everything read so far.

        Raises:
            InputError: the steps asked for never came.
        """
        if not self._steps:
            raise InputError(
                f"there is no step {self.selection.steps[0] if self.selection.steps else 1}",
                f"the last one is {self.step - 1}",
            )
        sums = self._layers.values()
        share, statistics, gaps = (
            torch.stack([value / its.calls for value, its in zip(values, sums, strict=True)], dim=-2).cpu()
            for values in (
                [its.share for its in sums],
                [its.statistics for its in sums],
                [its.gaps for its in sums],
            )
        )
        return Recording(
            self.words,
            tuple(its.layer for its in sums),
            torch.stack(self._steps, dim=1),
            share,
            statistics[0],
            statistics[1],
            gaps if self.pair else None,
        )

    def _wanted(self, height: int, heads: int) -> bool:
        asked = self.selection
        first, last = asked.steps or (1, self.step)
        has_head = asked.head is None or asked.head < heads
        return asked.resolution in (None, height) and has_head and first <= self.step <= last

    def _rows(self, batch: int) -> slice:
        """Where the asked-for branch stands in the batch."""
        samples = batch // self.parts
        if not self.guided:
            return slice(0, samples)
        half = samples // 2
        return slice(half, samples) if self.selection.branch == "conditional" else slice(0, half)

    def _add(self, name: str, size: tuple[int, int], probabilities: Tensor) -> None:
        """Reduces [b, h, p, t]."""
        device = probabilities.device
        per_word = probabilities.mean(dim=1) @ self._membership(probabilities.shape[-1], device)  # [b, p, w]
        maps = per_word.transpose(1, 2).reshape(len(per_word), -1, *size)  # [b, w, y, x]
        self._now[size] = self._now[size] + maps if size in self._now else maps
        self._now_calls += 1
        statistics = per_word.new_full((2, *maps.shape[:2]), math.nan)  # [2, b, w]
        for index, word in enumerate(self.words):
            if word.kind != "bucket":
                of = token_statistics(probabilities[..., list(word.positions)])
                statistics[:, :, index] = torch.stack([of.mean.mean(1), of.variance.mean(1)])
        gaps = per_word.new_zeros(len(maps), 2)
        if self.pair is not None:
            of = token_statistics(probabilities[..., [*self.pair[0], self.pair[1]]])  # [b, v + 1] each
            gaps = torch.stack(
                [(of.mean[:, :-1] - of.mean[:, -1:]), (of.variance[:, :-1] - of.variance[:, -1:])], dim=1
            )
            gaps = gaps.square().mean(dim=2)  # [b, 2]
        if name not in self._layers:
            self._layers[name] = _Sums(Layer(name, *size), per_word.mean(1), statistics, gaps, 1)
            return
        sums = self._layers[name]
        sums.share, sums.statistics, sums.gaps = (
            sums.share + per_word.mean(1),
            sums.statistics + statistics,
            sums.gaps + gaps,
        )
        sums.calls += 1

    def _membership(self, tokens: int, device: torch.device) -> Tensor:
        """[t, w], one where a token belongs to a word."""
        belongs = torch.zeros(tokens, len(self.words))
        for index, word in enumerate(self.words):
            belongs[list(word.positions), index] = 1
        return belongs.to(device)

    def _require_layers(self) -> None:
        heights = sorted({height for height, _ in self._seen})
        if self.selection.resolution is not None and self.selection.resolution not in heights:
            raise InputError(
                f"no cross-attention layer has resolution {self.selection.resolution}",
                f"choose one of {', '.join(map(str, heights))}",
            )
        most = max((heads for height, heads in self._seen if self.selection.resolution in (None, height)), default=0)
        if self.selection.head is not None and self.selection.head >= most:
            raise InputError(f"no layer read has a head {self.selection.head}", f"heads are 0 to {most - 1}")


def overlap(one: Tensor, other: Tensor) -> float:
    """How far two maps [y, x] lie in the same place, whatever their level: from 0 to 1, the same shape.

    The sum of the smaller of the two, each scaled to sum one (histogram intersection, Swain and Ballard 1991).
    """
    return float(torch.minimum(one / one.sum(), other / other.sum()).sum())


def map_size(positions: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer with that many query positions: the latent size, halved as often as it takes."""
    height, width = latent_size
    while height * width > positions:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    if height * width != positions:
        raise ValueError(f"{positions} positions do not fit latents of {latent_size}")
    return height, width


def parse_steps(text: str) -> tuple[int, int]:
    """`5-10` as (5, 10), `5` as (5, 5).

    Raises:
        InputError: not that form, or the wrong way round.
    """
    first, _, last = text.partition("-")
    if not (first.strip().isdecimal() and (last or first).strip().isdecimal()) or not 1 <= int(first) <= int(
        last or first
    ):
        raise InputError(f"--step-range must look like 1-10, not {text!r}", "steps count from 1")
    return int(first), int(last or first)


def pair_of(words: Sequence[Word]) -> tuple[tuple[int, ...], int] | None:
    """The positions the regulariser compares: [V]'s tokens and the one right after; None without [V] C."""
    for word, following in itertools.pairwise(words):
        if word.kind == "placeholder" and following.kind == "category":
            return word.positions, following.positions[0]
    return None
