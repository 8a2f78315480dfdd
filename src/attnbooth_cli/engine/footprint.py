"""How much memory and arithmetic a step of training takes, from the shape of the U-Net alone.

A U-Net of Stable Diffusion's kind is walked once, in the order of its forward pass. Every part says how many numbers
autograd keeps of it, how many weights it has and how many operations it does; `tests/engine/test_footprint.py` compares
the sums with what PyTorch keeps and counts. Never imports torch.

Letters: p positions, c channels, h heads, t prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from attnbooth_cli.engine.methods import AdamW, OptimizerName, Stage

FLOAT = 4
"""Bytes of a float32."""
MOMENT_BYTES: dict[OptimizerName, int] = {"adamw": 8, "adamw8bit": 2, "paged_adamw8bit": 2}
"""Bytes of a weight's two moments, without the scales of blocks (1/32 byte more)."""
PAGED: tuple[OptimizerName, ...] = ("paged_adamw8bit",)
"""Whose moments need not be in the device's memory."""
GRADIENTS_HELD = 64 * 2**20
"""Bytes of gradients that are complete before their weights are updated, where that happens during the backward pass
(`optimizers.updating_early`): a fiftieth of Stable Diffusion 2.1's in stage `unet`. Our choice."""
COLUMNS = 2
"""Prompt positions whose attention the regulariser reads: one of [V], one of the category."""

ATTENTION_BACKWARD = 2.5
"""Products of the backward pass of fused attention to those of its forward pass (five to two)."""
CHECKPOINTED = ("resnet", "transformer")
"""What diffusers computes anew in the backward pass under gradient checkpointing."""
KNOWN = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UNetMidBlock2DCrossAttn"}

Unit = Literal["convolution", "resnet", "transformer"]


@dataclass(frozen=True)
class Part:
    """A piece of the U-Net. Numbers kept and operations are those of one sample.

    Attributes:
        unit: What it belongs to, and that unit's number.
        cross_attention: Whether it is what stage `attention` trains.
        kept: Numbers autograd keeps whether or not the weights are trained.
        kept_if_trained: More of them where they are.
        entry: Numbers kept under gradient checkpointing.
        weights: How many it has.
        operations: Floating-point operations of the forward pass in products with weights, two a multiplication.
        attention: In products of activations with one another.
        once: In products that are done once for a batch that has one prompt.
        fused: Whether its attention is one kernel.
    """

    unit: tuple[Unit, int]
    kept: int
    weights: int
    operations: int
    cross_attention: bool = False
    kept_if_trained: int = 0
    entry: int = 0
    attention: int = 0
    once: int = 0
    fused: bool = True


def parts(config: Mapping[str, Any], side: int, *, tokens: int = 77, recorded: bool = True) -> tuple[Part, ...]:
    """A U-Net's parts in the order of its forward pass.

    Args:
        config: Its config.json.
        side: Of the latents.
        recorded: Whether cross-attention has explicit probabilities (`attention.StatisticsProcessor`).

    Raises:
        ValueError: it is not of the kind this knows.
    """
    kinds = {*config["down_block_types"], *config["up_block_types"], config.get("mid_block_type")}
    if kinds - KNOWN - {None} or config.get("class_embed_type") or config.get("addition_embed_type"):
        raise ValueError("a U-Net unlike Stable Diffusion's")
    return tuple(_walk(config, side, tokens, recorded))


def step_bytes(
    walked: Sequence[Part], stage: Stage, batch: int, *, checkpointing: bool = False, early: bool = False
) -> int:
    """Bytes of activations and gradients in float32 at the peak of a step of `batch` samples at once.

    The backward pass is gone through part by part: activations go as gradients come. What is worked on holds its
    activations' gradients beside them, and under checkpointing the activations of its unit computed anew.

    Args:
        early: Whether gradients are used up as they come, see `updates_early`.
    """
    whole = [kept * batch * FLOAT for kept in _kept(walked, stage)]
    held = [part.entry * batch * FLOAT if checkpointing else kept for part, kept in zip(walked, whole, strict=True)]
    if checkpointing:
        held = [kept if its else 0 for kept, its in zip(held, whole, strict=True)]
    before, gradients, peak = sum(held), 0, 0
    for part, kept, full in reversed(list(zip(walked, held, whole, strict=True))):
        unit = sum(its for other, its in zip(walked, whole, strict=True) if other.unit == part.unit)
        gradients += part.weights * FLOAT * is_trained(part, stage)
        peak = max(peak, before + gradients + (unit if checkpointing and part.unit[0] in CHECKPOINTED else 0) + full)
        before -= kept
        if early and gradients >= GRADIENTS_HELD:
            gradients = 0
    return peak


def updates_early(stage: Stage, batch: int, constants: AdamW, optimizer: OptimizerName) -> bool:
    """Whether a stage updates weights during the backward pass: where it is the step's only one, and nothing needs all
    gradients at once.

    Args:
        batch: Samples at once.
    """
    once = batch >= stage.batch_size and not stage.prior_weight and not stage.contextual
    return once and constants.max_gradient_norm is None and optimizer == "adamw"


def kept_bytes(walked: Sequence[Part], stage: Stage, batch: int) -> int:
    """Bytes autograd keeps of a forward pass in float32."""
    return sum(_kept(walked, stage)) * batch * FLOAT


def trained_weights(walked: Sequence[Part], stage: Stage) -> int:
    """How many of the U-Net's own weights a stage trains."""
    return sum(part.weights for part in walked if is_trained(part, stage))


def step_operations(walked: Sequence[Part], stage: Stage, *, checkpointing: bool = False) -> int:
    """Floating-point operations of a step of `stage.batch_size` samples in the U-Net: forward, backward to the
    activations and to the weights that are trained, and under checkpointing forward again."""
    begins, total = _begins(walked, stage), 0.0
    for number, part in enumerate(walked):
        tracked = number > begins or (number == begins and stage.name == "embedding")
        again = checkpointing and number >= begins and part.unit[0] in CHECKPOINTED
        products = part.operations * stage.batch_size + part.once
        total += products * (1 + tracked + is_trained(part, stage) + again)
        backward = ATTENTION_BACKWARD if part.fused else 2
        total += part.attention * stage.batch_size * (1 + backward * (number >= begins) + again)
    return int(total)


def is_trained(part: Part, stage: Stage) -> bool:
    """Whether a stage trains a part's own weights."""
    if stage.adapter is not None:
        return False
    return stage.name == "unet" or (stage.name == "attention" and part.cross_attention)


def _begins(walked: Sequence[Part], stage: Stage) -> int:
    """The first part gradients reach: the first cross-attention, unless everything is trained."""
    if stage.name == "unet" and stage.adapter is None:
        return 0
    return next(number for number, part in enumerate(walked) if part.cross_attention)


def _kept(walked: Sequence[Part], stage: Stage) -> list[int]:
    """Numbers autograd keeps of every part, of one sample."""
    begins = _begins(walked, stage)
    return [
        (part.kept + part.kept_if_trained * is_trained(part, stage)) * (number >= begins)
        for number, part in enumerate(walked)
    ]


def _walk(config: Mapping[str, Any], side: int, tokens: int, recorded: bool) -> Iterator[Part]:
    channels: list[int] = list(config["block_out_channels"])
    layers, context, latent = config["layers_per_block"], config["cross_attention_dim"], config["in_channels"]
    embedding = 4 * channels[0]
    heads_of = config.get("num_attention_heads") or config["attention_head_dim"]
    heads: list[int] = [heads_of] * len(channels) if isinstance(heads_of, int) else list(heads_of)
    linear = bool(config.get("use_linear_projection"))
    numbers = count()

    def transformer(c: int, h: int, p: int) -> Iterator[Part]:
        return _transformer(("transformer", next(numbers)), c, h, p, tokens, context, linear, recorded)

    def resnet(given: int, made: int, p: int) -> Part:
        shortcut = given * made if given != made else 0
        weights = 9 * (given * made + made * made) + shortcut + embedding * made + 6 * made + 2 * given
        operations = 2 * p * (9 * (given * made + made * made) + shortcut)
        return Part(("resnet", next(numbers)), 3 * (given + made) * p, weights, operations, entry=given * p)

    def convolution(given: int, made: int, p: int, kept: int) -> Part:
        weights = 9 * given * made + made
        return Part(("convolution", next(numbers)), kept, weights, 18 * given * made * p, entry=kept)

    times = Part(("convolution", next(numbers)), 0, (channels[0] + embedding + 2) * embedding, 0)
    yield times
    p = side * side
    yield convolution(latent, channels[0], p, latent * p)
    skips, now = [channels[0]], channels[0]
    for level, kind in enumerate(config["down_block_types"]):
        for _ in range(layers):
            yield resnet(now, channels[level], p)
            now = channels[level]
            if kind.startswith("CrossAttn"):
                yield from transformer(now, heads[level], p)
            skips.append(now)
        if level < len(channels) - 1:
            yield convolution(now, now, p // 4, now * p)
            p //= 4
            skips.append(now)
    yield resnet(now, now, p)
    yield from transformer(now, heads[-1], p)
    yield resnet(now, now, p)
    for level, kind in zip(reversed(range(len(channels))), config["up_block_types"], strict=True):
        for _ in range(layers + 1):
            yield resnet(now + skips.pop(), channels[level], p)
            now = channels[level]
            if kind.startswith("CrossAttn"):
                yield from transformer(now, heads[level], p)
        if level:
            p *= 4
            yield convolution(now, now, p, now * p)
    yield Part(("convolution", next(numbers)), 2 * now * p, 2 * now, 0, entry=2 * now * p)
    yield convolution(now, config["out_channels"], p, now * p)


def _transformer(
    unit: tuple[Unit, int], c: int, h: int, p: int, tokens: int, context: int, linear: bool, recorded: bool
) -> Iterator[Part]:
    """A transformer of one block: what comes before its cross-attention, that, and what comes after."""
    projection = 0 if linear else c * p  # a convolution's input is kept even where it is frozen
    yield Part(
        unit,
        kept=(2 + 4 + 1) * c * p + projection + h * p,
        kept_if_trained=(2 if linear else 1) * c * p,
        entry=2 * c * p + projection,
        weights=5 * c * c + c * (1 + 1 + 6) + c,
        operations=2 * p * 5 * c * c,
        attention=4 * p * p * c,
    )
    explicit = c * p + h * (tokens + COLUMNS) * p
    keys_and_values = 2 * c * tokens
    yield Part(
        unit,
        kept=(explicit if recorded else (2 * c + h) * p) + keys_and_values,
        kept_if_trained=(1 + recorded) * c * p,  # the fused kernel keeps its output anyway
        cross_attention=True,
        weights=2 * c * c + 2 * c * context + c,
        operations=4 * p * c * c,
        once=4 * tokens * c * context,
        attention=4 * p * tokens * c,
        fused=not recorded,
    )
    yield Part(
        unit,
        kept=(1 + 12) * c * p + projection,
        kept_if_trained=(1 + 4 + 1 - (not linear)) * c * p,
        entry=c * p,
        weights=12 * c * c + 8 * c + c + c * c + c,
        operations=2 * p * 13 * c * c,
    )
