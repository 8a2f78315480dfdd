"""Maps of words: the right tokens, the right numbers, the same picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from attnbooth_cli.engine.attention import MapProcessor, cross_attention_modules, processors
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.maps import MapRecorder, Word, find_words, map_size, word_maps
from attnbooth_cli.engine.sampling import Request, SamplingSettings, sample
from attnbooth_cli.engine.tokens import add_placeholder, placeholder
from attnbooth_cli.errors import InputError

SETTINGS = SamplingSettings(steps=3, guidance=4.0, width=64, height=64)


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize(
    "prompt", ["a photo of a {} on the beach", "a {}, on the beach!", 'the "{}" (red) near a teddy bear', "{}"]
)
def test_words_cover_the_tokens_they_are_made_of(components: Components, vectors: int, prompt: str) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", vectors, "housecat")
    add_placeholder(encoder.tokenizer, encoder.model, concept)
    text = concept.prompt(prompt)
    ids = encoder.tokenizer(text).input_ids
    words = find_words(encoder.tokenizer, concept, text, 32, [])
    for word in words:
        tokens = " ".join(concept.tokens) if word.text == "<it>" else word.text
        expected = encoder.tokenizer(tokens, add_special_tokens=False).input_ids
        assert [ids[position] for position in word.positions] == expected
    names = [word.text for word in words]
    assert "<it>" in names
    assert "housecat" in names
    assert len(names) == len(set(names))


def test_wanted_words_come_in_order_and_missing_ones_are_named(components: Components) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", 1, "cat")
    add_placeholder(encoder.tokenizer, encoder.model, concept)
    text = concept.prompt("a photo of a {} on the beach")
    assert [w.text for w in find_words(encoder.tokenizer, concept, text, 32, ["Beach", "{}"])] == ["beach", "<it>"]
    with pytest.raises(InputError, match="'moon'"):
        find_words(encoder.tokenizer, concept, text, 32, ["moon"])
    with pytest.raises(InputError, match="'beach'"):
        find_words(encoder.tokenizer, concept, text, 8, ["beach"])


def test_maps_are_the_explicit_probabilities_averaged(components: Components) -> None:
    """Against softmax(q k^T) in float64 from hooks on to_q and to_k, conditional half, to 1e-5."""
    columns = (3, 5)
    projected: dict[str, dict[str, list[torch.Tensor]]] = {}
    modules = cross_attention_modules(components.unet)
    handles = []
    for name, module in modules.items():
        for part in ("to_q", "to_k"):
            keep = projected.setdefault(name, {}).setdefault(part, [])
            hook = lambda _m, _a, output, keep=keep: keep.append(output[1:].double())  # noqa: E731
            handles.append(getattr(module, part).register_forward_hook(hook))
    recorder = MapRecorder(columns, (16, 16))
    with processors(components.unet, lambda name: MapProcessor(name, columns, recorder.add)):
        list(sample(components, [Request("a photo of a cat", 0)], SETTINGS))
    for handle in handles:
        handle.remove()
    for name, maps in recorder.layer_maps().items():
        heads = modules[name].heads
        expected = torch.zeros(len(columns), maps.shape[1] * maps.shape[2], dtype=torch.float64)
        for q, k in zip(projected[name]["to_q"], projected[name]["to_k"], strict=True):
            q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
            probabilities = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
            expected += probabilities[0].mean(0)[:, columns].T
        expected /= len(projected[name]["to_q"])
        torch.testing.assert_close(maps.flatten(1).double(), expected, rtol=1e-5, atol=1e-7)


def test_the_picture_is_the_same_with_and_without_maps(components: Components) -> None:
    request = [Request("a photo of a cat on the beach", 5)]
    (plain,) = sample(components, request, SETTINGS)
    recorder = MapRecorder((3,), (16, 16))
    with processors(components.unet, lambda name: MapProcessor(name, (3,), recorder.add)):
        (recorded,) = sample(components, request, SETTINGS)
    assert np.array_equal(np.asarray(plain), np.asarray(recorded))


def test_a_resolution_selects_layers_and_an_absent_one_is_named(components: Components) -> None:
    recorder = MapRecorder((3,), (16, 16))
    with processors(components.unet, lambda name: MapProcessor(name, (3,), recorder.add)):
        list(sample(components, [Request("a cat", 0)], SETTINGS))
    word = [Word("x", (3,))]
    heights = {maps.shape[1] for maps in recorder.layer_maps().values()}
    every, every_layer = word_maps(recorder, word, None)
    for height in heights:
        maps, layers = word_maps(recorder, word, height)
        assert 0 < len(layers) < len(every_layer)
        assert maps["x"].shape == every["x"].shape == (16, 16)
    with pytest.raises(InputError, match="resolution 5"):
        word_maps(recorder, word, 5)


def test_sizes_other_than_square(components: Components) -> None:
    recorder = MapRecorder((3,), (8, 24))
    with processors(components.unet, lambda name: MapProcessor(name, (3,), recorder.add)):
        list(sample(components, [Request("a cat", 0)], SamplingSettings(2, 1.0, width=96, height=32)))
    assert word_maps(recorder, [Word("x", (3,))], None)[0]["x"].shape == (8, 24)
    assert map_size(8 * 24, (8, 24)) == (8, 24)
    assert map_size(4 * 12, (8, 24)) == (4, 12)
    with pytest.raises(ValueError, match="do not fit"):
        map_size(7, (8, 24))
