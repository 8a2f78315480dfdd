"""ViCo (Hao et al. 2023): a picture of the concept beside the prompt, looked at by new attention layers.

The U-Net is frozen. A reference picture runs through it beside every sample, and after every other transformer block of
the up blocks a new block lets the sample attend to the reference, to that part of it where [V] looks. Trained are the
new blocks and [V]'s embedding. Figures are from haoosz/ViCo (ldm/modules/attention.py, diffusionmodules/openaimodel.py,
models/diffusion/ddpm.py, data/personalized.py).

    m samples   p positions of a layer   t prompt tokens   c channels of the latents   h, w their size
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnbooth_cli.engine.attention import attention_probabilities, project
from attnbooth_cli.engine.data import LatentSource
from attnbooth_cli.engine.rng import keyed_generator
from attnbooth_cli.engine.tokens import Placeholder, maximum_length, placeholder_ids

REGULARISATION = 5e-4
"""Weight of the distance between [V]'s map and the end token's (ddpm.py, p_losses)."""
THRESHOLDS = 10
"""Steps of the histogram that Otsu's threshold is sought in (attention.py, otsu)."""


class ImageAttention(nn.Module):
    """The new blocks, by the name of the transformer block each comes after (with bars for its dots).

    Each is a transformer block of the U-Net's own form: self-attention, attention to the reference, feed-forward.

    Attributes:
        reference: [1, c, h, w], the latents of the picture that generated pictures are shown.
    """

    reference: Tensor

    def __init__(self, unet: Any, reference: Tensor, seed: int) -> None:
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__()
        self.register_buffer("reference", reference)
        self.blocks = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_generator(seed, "vico").initial_seed())
            for name in places(unet):
                attn = unet.get_submodule(name).attn1
                width, head = attn.to_q.in_features, attn.to_q.out_features // attn.heads
                self.blocks[_barred(name)] = BasicTransformerBlock(
                    width, attn.heads, head, cross_attention_dim=width, activation_fn="geglu"
                )
        self.requires_grad_(False)


def places(unet: Any) -> list[str]:
    """The transformer blocks that a new one follows: in the up blocks, every other one of all there are.

    Counted from the first of the down blocks, those with an even number (openaimodel.py, id_attention % 2 == 0).
    """
    parts = ("down_blocks", "mid_block", "up_blocks")
    blocks = [name for name, _ in unet.named_modules() if name.rpartition(".")[0].endswith(".transformer_blocks")]
    ordered = sorted(blocks, key=lambda name: parts.index(name.partition(".")[0]))
    return [name for number, name in enumerate(ordered) if number % 2 == 0 and name.startswith("up_blocks")]


@dataclass
class ReferencePrompt:
    """New attention layers at work: what the U-Net's samples are told and shown.

    Attributes:
        token_id: Of [V], of its first vector if there are several.
        positions: [m, 2], where [V] and the end token stand in each sample's prompt; the end token twice without [V].
        references: [m or 1, c, h, w], latents of the reference pictures, without noise.
        parts, regularisation: See `Prompting`.
    """

    module: ImageAttention
    token_id: int
    positions: Tensor | None = None
    references: Tensor | None = None
    parts: int = 2
    regularisation: Tensor | None = None
    _maps: dict[str, Tensor] = field(default_factory=dict)

    def at_work(self, components: Any) -> AbstractContextManager[None]:
        """See `Prompting`."""
        return beside(self, components.unet)

    def tell(self, components: Any, texts: Sequence[str], *, guided: bool = False) -> None:
        """See `Prompting`. Both halves of guidance look where the prompt's [V] stands (ddim.py, p_sample_ddim)."""
        (encoder,) = components.text_encoders
        self.module.to(components.unet.device, components.unet.dtype)
        prompts = list(texts[len(texts) // 2 :]) * 2 if guided else texts
        self.positions = positions(encoder, self.token_id, prompts).to(components.unet.device)
        self.references = self.module.reference

    def draw(self, source: LatentSource, stage: str, step: int, indices: Sequence[int], batch_size: int) -> None:
        """See `Prompting`: every sample is shown another picture than its own, or its own if there is no other."""
        self.references = source.others(stage, step, indices, batch_size)


def begin(components: Any, concept: Placeholder, source: LatentSource) -> ReferencePrompt:
    """Untrained blocks for a base model; pictures will be made beside the first training picture."""
    module = ImageAttention(components.unet, source.first(), source.seed)
    return ReferencePrompt(module.to(components.device), _token_id(components, concept))


def restore(components: Any, concept: Placeholder, tensors: Mapping[str, Tensor]) -> ReferencePrompt:
    """Blocks from their stored tensors."""
    module = ImageAttention(components.unet, tensors["reference"], 0)
    module.load_state_dict(dict(tensors))
    return ReferencePrompt(module, _token_id(components, concept))


def positions(encoder: Any, token_id: int, texts: Sequence[str]) -> Tensor:
    """Where [V] and the end token stand in each of m prompts, [m, 2]; the end token twice without [V]."""
    length = maximum_length(encoder.tokenizer, encoder.model)
    found = []
    for text in texts:
        ids = encoder.tokenizer(text, truncation=True, max_length=length).input_ids
        found.append([ids.index(token_id) if token_id in ids else len(ids) - 1, len(ids) - 1])
    return torch.tensor(found)


@contextlib.contextmanager
def beside(prompt: ReferencePrompt, unet: Any) -> Iterator[None]:
    """Runs every sample with its reference during the block; the U-Net returns the samples' share alone, as a tuple."""
    original = unet.forward

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        if prompt.references is None:
            raise ValueError("tell it its prompts first")
        prompt.regularisation = None
        references = prompt.references.to(sample)
        if references.shape[-2:] != sample.shape[-2:]:
            references = F.interpolate(references, sample.shape[-2:], mode="bilinear")
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        (out,) = original(
            torch.cat([sample, references.expand_as(sample)]),
            torch.cat([times, times]),
            torch.cat([encoder_hidden_states, encoder_hidden_states]),
            **{**kwargs, "return_dict": False},
        )
        return (out[: len(sample)],)

    handles = []
    for name in places(unet):
        block = unet.get_submodule(name)
        handles.append(block.attn2.register_forward_pre_hook(_look(prompt, name), with_kwargs=True))
        handles.append(block.register_forward_hook(_attend(prompt, name)))
    unet.forward = forward
    try:
        yield
    finally:
        del unet.forward
        for handle in handles:
            handle.remove()
        prompt.regularisation = None


def _look(prompt: ReferencePrompt, name: str) -> Any:
    """Notes where the two tokens look in the references: [m, 2, p], mean over heads."""

    def hook(attn: Any, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else kwargs["hidden_states"]
        (_, references), (_, context) = hidden.chunk(2), kwargs["encoder_hidden_states"].chunk(2)
        query, key, _ = project(attn, references, context)
        maps = attention_probabilities(attn, query, key, None).mean(1)  # [m, p, t]
        assert prompt.positions is not None
        columns = prompt.positions.to(maps.device).unsqueeze(1).expand(-1, maps.shape[1], -1)
        prompt._maps[name] = maps.gather(2, columns).transpose(1, 2)

    return hook


def _attend(prompt: ReferencePrompt, name: str) -> Any:
    """Lets the samples attend to their references, and adds the distance of the two maps to the regularisation."""
    new = prompt.module.blocks[_barred(name)]

    def hook(_module: Any, _arguments: Any, output: Tensor) -> Tensor:
        samples, references = output.chunk(2)
        of_token, of_end = prompt._maps.pop(name).unbind(1)  # [m, p] each
        of_end = of_end.detach()
        gap = of_token / of_token.amax(1, keepdim=True) - of_end / of_end.amax(1, keepdim=True)
        added = REGULARISATION * gap.square().mean(1).sum()
        prompt.regularisation = added if prompt.regularisation is None else prompt.regularisation + added
        hidden = torch.zeros_like(of_token).masked_fill(~otsu(of_token.detach()), float("-inf"))
        mask = hidden.unsqueeze(1).to(output.dtype)  # [m, 1, p], added to the scores
        attended: Tensor = new(samples, encoder_hidden_states=references, encoder_attention_mask=mask)
        return torch.cat([attended, references])

    return hook


def otsu(maps: Tensor) -> Tensor:
    """Which positions of maps [m, p] belong to the brighter of two classes (Otsu 1979), thresholds in tenths: bool."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    scaled = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    best, between = torch.zeros_like(low), torch.zeros_like(low)
    for number in range(1, THRESHOLDS):
        threshold = number / THRESHOLDS
        above = scaled >= threshold
        share = above.float().mean(1, keepdim=True)
        mean_above = (scaled * above).sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp_min(1)
        mean_below = (scaled * ~above).sum(1, keepdim=True) / (~above).sum(1, keepdim=True).clamp_min(1)
        variance = share * (1 - share) * (mean_above - mean_below).square()
        better = variance > between
        best, between = torch.where(better, threshold, best), torch.where(better, variance, between)
    return scaled >= best


def _token_id(components: Any, concept: Placeholder) -> int:
    (encoder,) = components.text_encoders
    return placeholder_ids(encoder.tokenizer, concept)[0]


def _barred(name: str) -> str:
    """A name that `nn.ModuleDict` takes."""
    return name.replace(".", "|")
