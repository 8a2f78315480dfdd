"""The whole recipe in miniature: every step from sprites to a folder that loads, each once and then never again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from attnbooth_cli.engine.base_models import resolve
from attnbooth_cli.engine.families import load_components
from attnbooth_cli.engine.sampling import Request, SamplingSettings, sample
from benchmarks.judges import load_classifier, load_instance_encoder
from tools.tiny import clip, dataset, export, judges, training, unet, vae
from tools.tiny.__main__ import STEPS, Options
from tools.tiny.art import save_sprites
from tools.tiny.concepts import held_out
from tools.tiny.objects import NOUNS
from tools.tiny.training import saved_header

from .test_world import sprite

MADE = ("tokens", "clip-text", "vae", "latents", "unet", "decoder", "clip-images", "classifier", "instance-encoder")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A world of a hundred pictures, and trainings of two steps."""
    monkeypatch.setattr(dataset, "SPLITS", {"train": 48, "validation": 24, "judges": 24})
    monkeypatch.setattr("tools.tiny.tokenizer.SPLITS", dataset.SPLITS)
    monkeypatch.setattr(dataset, "CHUNK", 24)
    monkeypatch.setattr(unet, "CHUNK", 24)
    monkeypatch.setattr(training, "_faster_precision", lambda *_: "float32")  # trying bf16 takes longer than all else
    for module, name in (
        (clip, "TEXT_PHASE"),
        (clip, "IMAGE_PHASE"),
        (vae, "WHOLE_SCHEDULE"),
        (vae, "DECODER_SCHEDULE"),
        (unet, "SCHEDULE"),
        (judges, "CLASSIFIER_SCHEDULE"),
        (judges, "INSTANCE_SCHEDULE"),
    ):
        monkeypatch.setattr(module, name, replace(getattr(module, name), steps=2, cool_down=1, batch_size=8))
    caches = (dataset.open_judge_data, clip._data, clip._noun_tokens, unet._data, unet._autoencoder, vae.opened)
    caches += (judges._pairs_by_noun, dataset.wardrobe_of)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def files(work: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file() and "state" not in path.name}


def test_every_step_makes_its_part_and_the_parts_make_a_pipeline(tmp_path: Path, small: None) -> None:
    work = tmp_path / "work"
    work.mkdir()
    held = {art: concept.thing.noun for concept in held_out() for art in concept.withheld}
    sprites = [*((f"{kind}/{noun}", noun) for noun, kind in itertools.product(NOUNS, "ab")), *held.items()]
    save_sprites([sprite(art, noun) for art, noun in sprites], work / "sprites.npz")
    options = Options(work, processes=1, minutes=None)
    assert STEPS["pictures"](options)
    split = dataset.open_split(work, "train")
    assert split.pictures.shape == (48, 64, 64, 3)
    assert len(split.labels) == len(split.captions) == 48
    for name in MADE:
        assert STEPS[name](options), name
    assert not list(work.rglob("*.part")) + list(work.rglob("*chunks"))
    latents = np.load(work / "latents.npy")
    assert latents.shape == (2, 48, 8, 16, 16)
    assert saved_header(work / "unet" / "training").step == 2

    before = files(work / "pictures")
    for name in ("pictures", "latents"):
        assert STEPS[name](options)
    assert files(work / "pictures") == before

    size = export.export(work, tmp_path / "tiny")
    export.export_judges(work, tmp_path / "weights")
    assert size < export.LIMIT
    check_latents(work, latents)
    check_export(work, tmp_path / "tiny")
    shown = load_classifier(tmp_path / "weights")(torch.zeros(1, 3, 64, 64))
    assert {name: len(its[0]) for name, its in shown.items()} == {n: len(v) for n, v in dataset.ATTRIBUTES.items()}
    assert load_instance_encoder(tmp_path / "weights")(torch.zeros(2, 3, 64, 64)).shape == (2, 128)


def check_latents(work: Path, latents: np.ndarray) -> None:
    """They are the pictures' posteriors, times the scaling factor."""
    autoencoder = vae.AutoencoderKL.from_pretrained(work / "vae" / "first")
    pictures = vae.scaled(np.array(dataset.open_split(work, "train").pictures[20:30]))
    with torch.no_grad():
        mean, logvar = vae.moments(autoencoder, pictures)
    factor = autoencoder.config.scaling_factor
    for stored, exact in zip(latents[:, 20:30], (mean, (logvar / 2).exp()), strict=True):
        error = np.abs(stored.astype(np.float32) - (exact * factor).numpy()).max()
        assert error < 0.03 * np.abs(exact * factor).max().item() + 0.03  # bfloat16


def check_export(work: Path, folder: Path) -> None:
    """The folder is a base model as the engine wants it; its judge is CLIP without the text tower it shares."""
    components = load_components(resolve(str(folder)))
    (picture,) = sample(components, [Request("a photo of a cat", 0)], SamplingSettings(2, 4.0, width=64, height=64))
    assert picture.size == (64, 64)
    stored = load_file(folder / "clip" / "model.safetensors")
    whole = CLIPModel.from_pretrained(work / "clip" / "model").state_dict()
    tower = load_file(folder / "text_encoder" / "model.safetensors")
    assert not any(name.startswith("text_model.") for name in stored)
    assert {*stored, *(f"text_model.{name}" for name in tower)} == set(whole)
    for name, tensor in tower.items():
        assert torch.equal(tensor, whole[f"text_model.{name}"].half()), name
