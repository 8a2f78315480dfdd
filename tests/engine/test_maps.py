"""Maps of words: the right tokens, the right numbers, the same picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnbooth_cli.engine.attention import cross_attention_modules
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.losses import attention_regularisation, token_statistics
from attnbooth_cli.engine.maps import MapRecorder, Recording, Selection, map_size, overlap, parse_steps
from attnbooth_cli.engine.sampling import Request, SamplingSettings, sample
from attnbooth_cli.engine.tokens import add_placeholder, maximum_length, placeholder
from attnbooth_cli.engine.views import fitted, make, recorder_for, see
from attnbooth_cli.engine.words import BUCKETS, Word, choose, words_of
from attnbooth_cli.errors import InputError
from tests.engine.conftest import make_source

SETTINGS = SamplingSettings(steps=3, guidance=4.0, width=64, height=64)
CONCEPT = placeholder("<it>", 1, "cat")
PROMPT = "a photo of a <it> cat on the beach"


def recorder(
    components: Components,
    selection: Selection | None = None,
    settings: SamplingSettings = SETTINGS,
    wanted: Sequence[str] = (),
    prompt: str = PROMPT,
    guided: bool = True,
) -> MapRecorder:
    return recorder_for(components, CONCEPT, prompt, settings, selection or Selection(), wanted, guided=guided)


@pytest.fixture
def with_token(components: Components) -> Components:
    (encoder,) = components.text_encoders
    rows = add_placeholder(encoder.tokenizer, encoder.model, CONCEPT)
    assert rows.shape[0] == 1
    return components


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize(
    "prompt",
    ["a photo of a {} on the beach", "a {}, on the beach!", 'the "{}" (red) near a teddy bear', "{}", "a {} and a {}"],
)
@pytest.mark.parametrize("category", ["housecat", "teddy bear"])
def test_every_token_belongs_to_one_word(components: Components, vectors: int, prompt: str, category: str) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", vectors, category)
    add_placeholder(encoder.tokenizer, encoder.model, concept)
    text, length = concept.prompt(prompt), maximum_length(encoder.tokenizer, encoder.model)
    ids = encoder.tokenizer(text, padding="max_length", max_length=length).input_ids
    words = words_of(encoder.tokenizer, concept, text, length)
    assert sorted(position for word in words for position in word.positions) == list(range(length))
    for word in words:
        if word.kind != "bucket":
            tokens = " ".join(concept.tokens) if word.kind == "placeholder" else word.text.removesuffix(" (2)")
            expected = encoder.tokenizer(tokens, add_special_tokens=False).input_ids
            assert [ids[position] for position in word.positions] == expected
    names = [word.text for word in words]
    assert {"<it>", category} <= set(names)
    assert len(names) == len(set(names))
    assert [name for name in names if name in BUCKETS] == [name for name in BUCKETS if name in names]


def test_wanted_words_come_in_order_and_missing_ones_are_named(with_token: Components) -> None:
    (encoder,) = with_token.text_encoders
    words = words_of(encoder.tokenizer, CONCEPT, PROMPT, 77)
    chosen = choose(words, CONCEPT, ["Beach", "{}", "a (2)", "[padding]", "beach"])
    assert [word.text for word in chosen] == ["beach", "<it>", "a (2)", "[padding]"]
    with pytest.raises(InputError, match="'moon'"):
        choose(words, CONCEPT, ["moon"])
    with pytest.raises(InputError, match="'beach'"):
        choose(words_of(encoder.tokenizer, CONCEPT, PROMPT, 8), CONCEPT, ["beach"])


# --- numbers ----------------------------------------------------------------------------------------------------------


@contextmanager
def hooked(unet: Any) -> Iterator[dict[str, list[Tensor]]]:
    """What an unmodified U-Net attends with, from hooks on `to_q` and `to_k`: float64 [b, h, p, t] a layer and call."""
    projected: dict[str, dict[str, Tensor]] = {}
    found: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in cross_attention_modules(unet).items():
        for part in ("to_q", "to_k"):

            def keep(
                _m: Any, _a: Any, output: Tensor, name: str = name, part: str = part, module: Any = module
            ) -> None:
                mine = projected.setdefault(name, {})
                mine[part] = output.double().unflatten(-1, (module.heads, -1)).transpose(1, 2)
                if len(mine) == 2:
                    q, k = mine.pop("to_q"), mine.pop("to_k")
                    found.setdefault(name, []).append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1))

            handles.append(getattr(module, part).register_forward_hook(keep))
    yield found
    for handle in handles:
        handle.remove()


def explicit(found: dict[str, list[Tensor]], name: str, rows: slice, words: Sequence[Word]) -> Tensor:
    """[s, b, w, p], the mean over heads and the sum over tokens of a layer, in float64."""
    calls = torch.stack([call[rows].mean(1) for call in found[name]])  # [s, b, p, t]
    return torch.stack([calls[..., list(word.positions)].sum(-1) for word in words], dim=2)


@pytest.mark.parametrize("branch", ["conditional", "unconditional"])
def test_maps_are_the_explicit_probabilities(with_token: Components, branch: Any) -> None:
    """To 1e-5 against an unmodified pipeline at the same seed; shares of all words add up to one."""
    requests = [Request(PROMPT, 0), Request(PROMPT, 7)]
    with hooked(with_token.unet) as found:
        plain = list(sample(with_token, requests, SETTINGS))
    reading = recorder(with_token, Selection(branch=branch))
    pictures, recording = make(with_token, reading, requests, SETTINGS)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(plain, pictures, strict=True))
    rows = slice(2, 4) if branch == "conditional" else slice(0, 2)
    expected_maps = torch.zeros_like(recording.steps, dtype=torch.float64)
    for index, layer in enumerate(recording.layers):
        expected = explicit(found, layer.name, rows, recording.words)
        torch.testing.assert_close(recording.share[:, index].double(), expected.mean((0, 3)), rtol=1e-5, atol=1e-9)
        maps = expected.unflatten(3, (layer.height, layer.width)).flatten(0, 1)
        enlarged = torch.nn.functional.interpolate(maps, (16, 16), mode="bicubic")
        expected_maps += enlarged.unflatten(0, (SETTINGS.steps, 2)).transpose(0, 1) / len(recording.layers)
    torch.testing.assert_close(recording.steps.double(), expected_maps.clamp_min(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(recording.share.sum(2), torch.ones(2, len(recording.layers)))


def test_statistics_are_those_of_the_regulariser(with_token: Components) -> None:
    with hooked(with_token.unet) as found:
        list(sample(with_token, [Request(PROMPT, 3)], SETTINGS))
    _, recording = make(with_token, recorder(with_token), [Request(PROMPT, 3)], SETTINGS)
    assert recording.gaps is not None
    token, category = recording.words[4].positions[0], recording.words[5].positions[0]
    assert [word.kind for word in recording.words[4:6]] == ["placeholder", "category"]
    terms, means = [], []
    for step in range(SETTINGS.steps):
        layers = [token_statistics(found[layer.name][step][1:][..., [token, category]]) for layer in recording.layers]
        terms.append([float(term) for term in attention_regularisation(layers, 1, 1)])
        means.append(torch.stack([layer.mean[0, 0] for layer in layers]))
    expected = torch.tensor(terms).mean(0)
    torch.testing.assert_close(recording.gaps[0].mean(0).double(), expected.double(), rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(recording.mean[0, :, 4].double(), torch.stack(means).mean(0), rtol=1e-5, atol=1e-9)
    assert torch.isnan(recording.mean[0, :, -1]).all()  # the padding is no word


def test_a_batch_is_its_pictures_one_by_one(with_token: Components) -> None:
    requests = [Request(PROMPT, 1), Request(PROMPT, 2)]
    _, together = make(with_token, recorder(with_token), requests, SETTINGS)
    for number, request in enumerate(requests):
        _, alone = make(with_token, recorder(with_token), [request], SETTINGS)
        torch.testing.assert_close(together.of(number).maps, alone.maps, rtol=1e-3, atol=1e-4)


# --- selections -------------------------------------------------------------------------------------------------------


def recorded(components: Components, **selected: Any) -> Recording:
    _, recording = make(components, recorder(components, Selection(**selected)), [Request(PROMPT, 0)], SETTINGS)
    return recording


def test_resolutions_split_the_layers(with_token: Components) -> None:
    every = recorded(with_token)
    heights = {layer.height for layer in every.layers}
    assert len(heights) > 1
    parts = {height: recorded(with_token, resolution=height) for height in heights}
    assert sum(len(part.layers) for part in parts.values()) == len(every.layers)
    for part in parts.values():
        rows = [every.layers.index(layer) for layer in part.layers]
        torch.testing.assert_close(part.share, every.share[:, rows])
    finest = parts[max(heights)]
    assert not torch.equal(finest.maps, every.maps)
    with pytest.raises(InputError, match="resolution 5"):
        recorded(with_token, resolution=5)


def test_heads_average_to_all(with_token: Components) -> None:
    every = recorded(with_token)
    (heads,) = {cross_attention_modules(with_token.unet)[layer.name].heads for layer in every.layers}
    parts = [recorded(with_token, head=head) for head in range(heads)]
    torch.testing.assert_close(torch.stack([part.share for part in parts]).mean(0), every.share)
    with pytest.raises(InputError, match="head 99"):
        recorded(with_token, head=99)


def test_a_range_of_steps(with_token: Components) -> None:
    every, late = recorded(with_token), recorded(with_token, steps=(2, 3))
    torch.testing.assert_close(late.steps, every.steps[:, 1:])
    with pytest.raises(InputError, match="no step 9"):
        recorded(with_token, steps=(9, 12))
    assert parse_steps("2-3") == (2, 3)
    assert parse_steps("7") == (7, 7)
    for wrong in ("0-3", "5-2", "x", "1-2-3", "-4", ""):
        with pytest.raises(InputError):
            parse_steps(wrong)


def test_only_what_was_asked_for_is_kept(with_token: Components) -> None:
    _, recording = make(with_token, recorder(with_token, wanted=["beach"]), [Request(PROMPT, 0)], SETTINGS)
    assert [word.text for word in recording.words] == ["beach"]
    assert recording.steps.shape[2] == recording.share.shape[2] == 1


def test_sizes_other_than_square(with_token: Components) -> None:
    settings = SamplingSettings(2, 1.0, width=96, height=32)
    reading = recorder(with_token, settings=settings, guided=False)
    (picture,), recording = make(with_token, reading, [Request(PROMPT, 0)], settings)
    assert picture.size == (96, 32)
    assert recording.maps.shape[2:] == (8, 24)
    assert map_size(8 * 24, (8, 24)) == (8, 24)
    assert map_size(4 * 12, (8, 24)) == (4, 12)
    with pytest.raises(ValueError, match="do not fit"):
        map_size(7, (8, 24))


def test_overlap() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert overlap(one, one * 7) == pytest.approx(1)
    assert overlap(one, torch.tensor([[0.0, 2.0], [5.0, 0.0]])) == 0
    assert overlap(one, torch.ones(2, 2)) == pytest.approx(0.5)


# --- existing pictures ------------------------------------------------------------------------------------------------


def test_an_existing_picture_is_seen_as_in_training(with_token: Components) -> None:
    """Against the U-Net's explicit probabilities on the picture's latents, noised by the scheduler's own formula."""
    picture = fitted(make_source(with_token).pictures[0], SETTINGS)
    with hooked(with_token.unet) as found:
        timesteps, recording = see(with_token, recorder(with_token, guided=False), PROMPT, picture, seed=5)
    (name, *_) = (layer.name for layer in recording.layers)
    expected = explicit(found, name, slice(0, 1), recording.words).mean((0, 3))
    torch.testing.assert_close(recording.share[:, 0].double(), expected, rtol=1e-5, atol=1e-9)
    assert len(timesteps) == recording.steps.shape[1] == len(found[name])
    assert list(timesteps) == sorted(timesteps, reverse=True)

    calls: list[tuple[Tensor, Tensor]] = []
    handle = with_token.unet.register_forward_pre_hook(lambda _m, given: calls.append((given[0], given[1])))
    see(with_token, recorder(with_token, guided=False), PROMPT, picture, seed=5)
    handle.remove()
    cumulative = with_token.noise_scheduler.alphas_cumprod
    (most, _), (least, time) = calls[0], calls[-1]
    a, b = cumulative[timesteps[0]], cumulative[timesteps[-1]]
    noise_and_latents = torch.tensor([[a.sqrt(), (1 - a).sqrt()], [b.sqrt(), (1 - b).sqrt()]])
    latents, noise = torch.einsum("ij,jbchw->ibchw", noise_and_latents.inverse(), torch.stack([most, least]))
    assert int(time) == timesteps[-1]
    assert noise.std() == pytest.approx(1, abs=0.1)
    decoded = with_token.vae.decode(latents / with_token.vae.config.scaling_factor).sample
    shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
    assert float((decoded[0] - shown).square().mean()) < 0.02


def test_processors_are_restored_after_an_error(with_token: Components) -> None:
    before = dict(with_token.unet.attn_processors)
    with pytest.raises(InputError):
        recorded(with_token, resolution=5)
    assert with_token.unet.attn_processors == before
