"""NeTI (Alaluf et al., SIGGRAPH Asia 2023): [V] as a small network of the denoising time and the U-Net's layer.

Every cross-attention layer has its own encoding of the prompt at every time: [V]'s embedding comes from the mapper, and
a second output of it, the textual bypass, is added to [V]'s place in what the layer's values are computed from. Figures
are from NeuralTextualInversion/NeTI (models/, training/).

    b samples   l cross-attention layers   t prompt tokens   d width of the text encoder
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnbooth_cli.engine.attention import cross_attention_modules
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.rng import keyed_generator
from attnbooth_cli.engine.tokens import Placeholder, placeholder_ids

FREQUENCIES = 1024
SIGMA_TIME, SIGMA_LAYER = 0.03, 2.0
"""Spread of the random frequencies of time and layer (paper, section 4.2; training/config.py)."""
TIME_ANCHORS = 10
HIDDEN = 128
BYPASS = 0.2
"""Share of the textual bypass (models/neti_clip_text_encoder.py)."""
DROPOUT = 0.5
"""Of the nested dropout (training/config.py)."""
TIMES = 1000
"""Times that the anchors are spread over."""


class Mapper(nn.Module):
    """(time, layer) to [V]'s embedding and bypass.

    Args:
        width: d.
        layers: l.
        norm: What the two outputs together are scaled to: the norm of the category's embedding.
        seed: Keys the frequencies and the initial weights.
    """

    frequencies: Tensor
    norm: Tensor

    def __init__(self, width: int, layers: int, norm: float, seed: int) -> None:
        super().__init__()
        frequencies = torch.randn(FREQUENCIES, 2, generator=keyed_generator(seed, "neti", "frequencies"))
        self.register_buffer("frequencies", frequencies * torch.tensor([SIGMA_TIME, SIGMA_LAYER]))
        self.register_buffer("norm", torch.tensor(norm))
        inside = TIME_ANCHORS * layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_generator(seed, "neti", "weights").initial_seed())
            self.anchors = nn.Linear(2 * FREQUENCIES, inside)
            self.net = nn.Sequential(
                nn.Linear(inside, HIDDEN), nn.LayerNorm(HIDDEN), nn.LeakyReLU(),
                nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.LeakyReLU(),
            )  # fmt: skip
            self.output = nn.Linear(HIDDEN, 2 * width)
        times = torch.arange(0, TIMES, TIMES // TIME_ANCHORS).repeat_interleave(layers)
        with torch.no_grad():
            self.anchors.weight.copy_(self.encoded(times, torch.arange(layers).repeat(TIME_ANCHORS)))

    @property
    def layers(self) -> int:
        """l."""
        return self.anchors.out_features // TIME_ANCHORS

    def encoded(self, times: Tensor, layers: Tensor) -> Tensor:
        """Random Fourier features of (time, layer) pairs [n]: [n, 2 FREQUENCIES], unit length."""
        angles = torch.stack([times, layers], 1).to(self.frequencies) @ self.frequencies.T
        return F.normalize(torch.cat([angles.sin(), angles.cos()], 1), dim=1)

    def forward(self, times: Tensor, layers: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embedding and bypass, [n, d] each.

        Args:
            times, layers: [n].
            kept: [n], how many of the hidden units count (nested dropout); None for all.
        """
        hidden = self.net(self.anchors(self.encoded(times, layers)))
        if kept is not None:
            hidden = hidden * (torch.arange(HIDDEN, device=hidden.device) < kept[:, None])
        both = F.normalize(self.output(hidden), dim=-1) * self.norm
        embedding, bypass = both.chunk(2, dim=1)
        return embedding, bypass


@dataclass
class LayerwisePrompt:
    """A mapper at work: before every call of the U-Net, `texts` says what each of its samples is told.

    Attributes:
        token_id: Of [V].
        kept: [b, l], see `Mapper.forward`; None for all.
        parts, regularisation: See `Prompting`.
    """

    module: Mapper
    token_id: int
    texts: Sequence[str] = ()
    kept: Tensor | None = None
    parts: int = 1
    regularisation: Tensor | None = None

    def at_work(self, components: Any) -> AbstractContextManager[None]:
        """See `Prompting`."""
        (encoder,) = components.text_encoders
        return layerwise(self, encoder.tokenizer, encoder.model, components.unet)

    def tell(self, components: Any, texts: Sequence[str], *, guided: bool = False) -> None:
        """See `Prompting`."""
        self.texts, self.kept = texts, None
        self.module.to(components.device)

    def draw(self, source: LatentSource, stage: str, step: int, indices: Sequence[int], batch_size: int) -> None:
        """See `Prompting`."""
        kept = nested_dropout(source.seed, stage, step, indices, self.module.layers)
        self.kept = kept.to(self.module.norm.device)

    def encode(self, tokenizer: Any, text_encoder: Any, times: Tensor) -> tuple[Tensor, Tensor]:
        """What the layers' keys and values are computed from at `times` [b]: [l, b, t, d] each."""
        layers, samples = self.module.layers, len(self.texts)
        length = min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
        ids = tokenizer(
            list(self.texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids.to(text_encoder.device)
        ids = ids.repeat(layers, 1)  # [l b, t]
        numbers = torch.arange(layers, device=times.device).repeat_interleave(samples)
        kept = None if self.kept is None else self.kept.T.flatten()
        embedding, bypass = self.module(times.repeat(layers), numbers, kept)
        here = (ids == self.token_id).unsqueeze(-1)  # [l b, t, 1]
        before_norm: list[Tensor] = []

        def substitute(_module: Any, _arguments: Any, output: Tensor) -> Tensor:
            return torch.where(here, embedding.unsqueeze(1).to(output.dtype), output)

        def remember(_module: Any, arguments: tuple[Tensor, ...]) -> None:
            before_norm.append(arguments[0])

        norm = _final_norm(text_encoder)
        handles = [
            text_encoder.get_input_embeddings().register_forward_hook(substitute),
            norm.register_forward_pre_hook(remember),
        ]
        try:
            keys = text_encoder(input_ids=ids).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        (state,) = before_norm
        added = F.normalize(bypass, dim=1).unsqueeze(1) * state.norm(dim=-1, keepdim=True)
        values = norm(torch.where(here, state + BYPASS * added.to(state.dtype), state))
        shape = (layers, samples, *keys.shape[1:])
        return keys.view(shape), values.view(shape)


def begin(components: Any, concept: Placeholder, source: LatentSource) -> LayerwisePrompt:
    """An untrained mapper for a base model."""
    (encoder,) = components.text_encoders
    category_id, *_ = encoder.tokenizer(concept.category, add_special_tokens=False).input_ids
    row = encoder.model.get_input_embeddings().weight[category_id]
    layers = len(cross_attention_modules(components.unet))
    mapper = Mapper(len(row), layers, float(row.float().norm()), source.seed).requires_grad_(False)
    return _prompt(components, concept, mapper.to(components.device))


def restore(components: Any, concept: Placeholder, tensors: Mapping[str, Tensor]) -> LayerwisePrompt:
    """A mapper from its stored tensors."""
    width, inside = tensors["output.weight"].shape[0] // 2, tensors["anchors.weight"].shape[0]
    mapper = Mapper(width, inside // TIME_ANCHORS, 1.0, 0)
    mapper.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return _prompt(components, concept, mapper.requires_grad_(False))


def _prompt(components: Any, concept: Placeholder, mapper: Mapper) -> LayerwisePrompt:
    (encoder,) = components.text_encoders
    return LayerwisePrompt(mapper, placeholder_ids(encoder.tokenizer, concept)[0])


def nested_dropout(seed: int, stage: str, step: int, indices: Sequence[int], layers: int) -> Tensor:
    """How many hidden units count, [b, l]: all of them, or (with probability `DROPOUT`) a uniform number."""
    rows = []
    for index in indices:
        generator = keyed_generator(seed, stage, step, index, "nested dropout")
        dropped = torch.rand(layers, generator=generator) < DROPOUT
        rows.append(torch.where(dropped, torch.randint(HIDDEN, (layers,), generator=generator), HIDDEN))
    return torch.stack(rows)


@contextlib.contextmanager
def layerwise(prompt: LayerwisePrompt, tokenizer: Any, text_encoder: Any, unet: Any) -> Iterator[None]:
    """Tells every cross-attention layer its own encoding during the block, whatever attention processor it has.

    What the U-Net is given as `encoder_hidden_states` does not matter then.
    """
    names = execution_order(cross_attention_modules(unet))
    current: dict[str, tuple[Tensor, Tensor]] = {}

    def before_unet(_module: Any, arguments: tuple[Any, ...]) -> None:
        sample, time = arguments[:2]
        times = torch.as_tensor(time, device=sample.device).expand(len(sample))
        keys, values = prompt.encode(tokenizer, text_encoder, times)
        current.update({name: (keys[i], values[i]) for i, name in enumerate(names)})

    def before_layer(name: str) -> Any:
        def hook(_module: Any, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return arguments, {**kwargs, "encoder_hidden_states": current[name][0]}

        return hook

    modules = cross_attention_modules(unet)
    handles = [unet.register_forward_pre_hook(before_unet)]
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(before_layer(name), with_kwargs=True))
        handles.append(module.to_v.register_forward_pre_hook(lambda _m, _a, name=name: (current[name][1],)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def execution_order(names: Mapping[str, Any]) -> list[str]:
    """The layers in the order in which the U-Net runs them: down, middle, up."""
    parts = ("down_blocks", "mid_block", "up_blocks")
    return sorted(names, key=lambda name: parts.index(name.partition(".")[0]))


def _final_norm(text_encoder: Any) -> nn.Module:
    (found,) = [its for name, its in text_encoder.named_modules() if name.endswith("final_layer_norm")]
    norm: nn.Module = found
    return norm
