"""What a stage works on, and what the U-Net is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from attnbooth_cli.engine import offload
from attnbooth_cli.engine.attention import recording_statistics
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.families import FAMILIES, Components, Conditioning
from attnbooth_cli.engine.methods import Stage
from attnbooth_cli.engine.tokens import (
    Placeholder,
    maximum_length,
    placeholder_ids,
    recorded_positions,
    substituted_rows,
)

CLASS_PROMPT = "a photo of a {}"
"""What the class's pictures are called: the training prompt without [V] (DreamBooth, section 3.2: "a [class noun]")."""


@dataclass(frozen=True)
class Subject:
    """What a stage works on.

    Attributes:
        rows: [n, d] float32, the embedding rows of [V].
        prompts: The training prompts with [V] spelt out; one is drawn for each sample.
        prior: The class's own pictures, for stages with a prior weight.
    """

    components: Components
    placeholder: Placeholder
    rows: nn.Parameter
    prompts: tuple[str, ...]
    prior: LatentSource | None = None


@dataclass(frozen=True)
class Conditioner:
    """How samples get their prompts' encodings.

    Attributes:
        of: Step and the samples' indices to a conditioning of leading dimension m, or 1 where there is one prompt.
        of_class: The conditioning of the class's prompt, leading dimension 1.
    """

    of: Callable[[int, Sequence[int]], Conditioning]
    of_class: Callable[[], Conditioning]


def conditioning_of(stage: Stage, subject: Subject, source: LatentSource, accelerator: Any) -> Conditioner:
    """Prompts are encoded anew at every step while the embedding trains, else once."""
    components = subject.components
    encode = FAMILIES[components.family].encode
    (encoder,) = components.text_encoders

    @lru_cache
    def of_class() -> Conditioning:
        with torch.no_grad(), accelerator.autocast():
            return encode(components, [CLASS_PROMPT.format(subject.placeholder.category)])

    @lru_cache
    def constant() -> Conditioning:
        with torch.no_grad(), accelerator.autocast():
            encoded = encode(components, subject.prompts)
        if not stage.adapter or stage.adapts_unet:
            offload.put_aside(encoder.model, accelerator.device)  # `encode` has it back for the class's prompt
        return encoded

    def drawn(step: int, indices: Sequence[int]) -> list[int]:
        if len(subject.prompts) == 1:
            return [0]
        return [source.prompt_number(stage.name, step, index, len(subject.prompts)) for index in indices]

    def kept(step: int, indices: Sequence[int]) -> Conditioning:
        return {name: value[drawn(step, indices)] for name, value in constant().items()}

    def trained(step: int, indices: Sequence[int]) -> Conditioning:
        """With gradients to the rows."""
        ids = placeholder_ids(encoder.tokenizer, subject.placeholder)
        with substituted_rows(encoder.model, ids, subject.rows):
            return encode(components, [subject.prompts[number] for number in drawn(step, indices)])

    def prompted(step: int, indices: Sequence[int]) -> Conditioning:
        """What else tells the U-Net of [V] is told of the samples too."""
        numbers = drawn(step, indices)
        numbers = numbers if len(numbers) > 1 else numbers * len(indices)
        components.prompting.tell(components, [subject.prompts[number] for number in numbers])
        components.prompting.draw(source, stage.name, step, indices, stage.batch_size)
        return trained(step, indices) if stage.embedding_rate else kept(step, indices)

    if stage.adapter and not stage.adapts_unet:
        return Conditioner(prompted, of_class)
    return Conditioner(trained if stage.name == "embedding" else kept, of_class)


def told(components: Components) -> Any:
    """What [V] is beyond an embedding acts during the block."""
    return components.prompting.at_work(components) if components.prompting is not None else nullcontext()


def recording(stage: Stage, subject: Subject) -> Any:
    """Recording of the [V] and category columns, or nothing at all when the regulariser is off."""
    if not stage.regularised:
        return nullcontext(None)
    (encoder,) = subject.components.text_encoders
    length = maximum_length(encoder.tokenizer, encoder.model)
    columns = recorded_positions(encoder.tokenizer, subject.placeholder, subject.prompts[0], length)
    return recording_statistics(subject.components.unet, columns)
