"""The parts of the recipe that are not only training: latents, tokens, judges, and the exported folder."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.judges import Classifier, InstanceEncoder
from tools.tiny import clip, dataset, judges, unet, vae
from tools.tiny.captions import caption, vocabulary
from tools.tiny.tokenizer import CAPTION_TOKENS, POSITIONS, build_tokenizer, encode
from tools.tiny.training import Draw

from .test_world import depictions, rng


def smooth_pictures(count: int) -> np.ndarray:
    """Random colour ramps, uint8 [count, 64, 64, 3]."""
    knots = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(knots, size=(64, 64), mode="bilinear")
    return (pixels.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def test_standardised_latents_give_the_same_pictures():
    torch.manual_seed(0)
    autoencoder = vae.build()["vae"].eval()
    pictures = vae.scaled(smooth_pictures(6))
    with torch.no_grad():
        mean, logvar = vae.moments(autoencoder, pictures)
        before = vae.decoded(autoencoder, mean)
        means, deviations = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
        vae.standardise(autoencoder, means, deviations)
        new_mean, new_logvar = vae.moments(autoencoder, pictures)
        after = vae.decoded(autoencoder, new_mean)
    shape = (-1, 1, 1)
    torch.testing.assert_close(new_mean, (mean - means.view(shape)) / deviations.view(shape), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new_logvar, logvar - 2 * deviations.log().view(shape), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_psnr_of_a_known_error():
    assert abs(vae.psnr(torch.tensor(4e-2)).item() - 20) < 1e-4


@functools.cache
def tokenizer():
    return build_tokenizer()


def test_every_word_of_the_grammar_is_one_token():
    words = {word for phrase in vocabulary() for word in phrase.replace("-", " ").split()}
    pieces = {word: tokenizer().tokenize(word) for word in words}
    assert all(len(its) == 1 for its in pieces.values()), {word: its for word, its in pieces.items() if len(its) > 1}


@given(depiction=depictions(), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_captions_fit_and_come_back(depiction, seed):
    said = caption(depiction, rng(seed))
    (row,) = encode(tokenizer(), [said], CAPTION_TOKENS)
    assert tokenizer().decode(row, skip_special_tokens=True).replace(" - ", "-").strip() == said
    assert (encode(tokenizer(), [said])[0, CAPTION_TOKENS:] == tokenizer().pad_token_id).all()
    assert encode(tokenizer(), [said]).shape == (1, POSITIONS)


def test_unknown_words_fall_into_pieces_and_lose_nothing():
    ids = tokenizer()("plushie").input_ids[1:-1]
    assert len(ids) > 1
    assert tokenizer().decode(ids).strip() == "plushie"


def test_padding_does_not_change_a_text():
    """The towers see captions cut to their longest; the pipeline pads them to 77."""
    torch.manual_seed(0)
    model = clip.build(len(tokenizer()))["clip"].eval()
    texts = ["a photo of a cat", "a red dog on the beach in the style of a pencil sketch"]
    with torch.no_grad():
        together = clip.text_embeddings(model, torch.from_numpy(encode(tokenizer(), texts)))
        alone = clip.text_embeddings(model, torch.from_numpy(encode(tokenizer(), texts[:1])))
        whole = model.text_projection(model.text_model(torch.from_numpy(encode(tokenizer(), texts))).pooler_output)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, torch.nn.functional.normalize(whole, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("identity", [[1, 2, -3], [7, 7, 1], [5, 5, 5]])
def test_instances_contrast_by_hand(identity):
    """Every other picture is a contrast but those of the same identity that are not the partner."""
    embeddings = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    identities = [*identity, *identity]
    value, found = clip.instance_contrast(embeddings, torch.tensor(identities), 0.5)
    logits = (embeddings @ embeddings.T / 0.5).double()
    rows, right = [], []
    for i in range(6):
        partner = (i + 3) % 6
        others = [j for j in range(6) if j == partner or identities[j] != identities[i]]
        rows.append(torch.logsumexp(logits[i, others], 0) - logits[i, partner])
        right.append(max(others, key=lambda j: logits[i, j]) == partner)
    torch.testing.assert_close(value.double(), torch.stack(rows).mean(), rtol=1e-5, atol=1e-6)
    assert abs(found - np.mean(right)) < 1e-6


def test_judges_take_pictures_and_give_what_they_say():
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    logits = Classifier(dataset.ATTRIBUTES)(pictures)
    assert {name: its.shape for name, its in logits.items()} == {n: (3, len(v)) for n, v in dataset.ATTRIBUTES.items()}
    embeddings = InstanceEncoder()(pictures)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_disturbed_pictures_stay_pictures(seed):
    pictures = vae.scaled(smooth_pictures(4))
    seen = judges.disturbed(clip.augmented(pictures, Draw(seed, 0, 4)), Draw(seed, 1, 4))
    assert seen.shape == pictures.shape
    assert seen.min() >= -1
    assert seen.max() <= 1


def test_the_unet_has_nine_cross_attention_layers_and_fits():
    model = unet.build()["unet"]
    names = [name for name, _ in model.named_modules() if name.endswith("attn2")]
    assert len(names) == 9
    assert sum(p.numel() for p in model.parameters()) < 7_000_000
