"""A base model's folder in memory: the same parts as diffusers' own loader gives, and none of them twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnbooth_cli.engine import pipeline_folder
from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.families import load_components
from attnbooth_cli.engine.pipeline_folder import load_text_encoder
from benchmarks.startup import loading

TEXT = "model.safetensors"


def test_the_parts_are_those_of_diffusers_own_loader(base: BaseModel) -> None:
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    ours = load_components(base)
    theirs = StableDiffusionPipeline.from_pretrained(base.path, safety_checker=None, feature_extractor=None)
    models = ((ours.unet, theirs.unet), (ours.vae, theirs.vae), (ours.text_encoders[0].model, theirs.text_encoder))
    for one, other in models:
        assert type(one) is type(other)
        assert not one.training
        expected = other.float().state_dict()
        assert one.state_dict().keys() == expected.keys()
        for name, tensor in one.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name]), name
    expected_schedule = DDPMScheduler.from_config(theirs.scheduler.config, prediction_type=base.prediction_type).config
    assert dict(ours.noise_scheduler.config) == dict(expected_schedule)
    assert ours.text_encoders[0].tokenizer.get_vocab() == theirs.tokenizer.get_vocab()


@pytest.fixture
def folder(base: BaseModel, tmp_path: Path) -> Path:
    """A copy of the bundled text encoder."""
    return Path(shutil.copytree(base.path / "text_encoder", tmp_path / "text_encoder"))


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_names_with_and_without_their_prefix_are_understood(folder: Path, base: BaseModel, prefix: str) -> None:
    expected = load_components(base).text_encoders[0].model.state_dict()
    tensors = load_file(folder / TEXT)
    renamed = {prefix + name.removeprefix("text_model."): its.clone() for name, its in tensors.items()}
    renamed[f"{prefix}embeddings.position_ids"] = torch.arange(77).unsqueeze(0)  # as older files have it
    save_file(renamed, folder / TEXT, {"format": "pt"})
    found = load_text_encoder(folder, None).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_other_names_are_left_to_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch, base: BaseModel) -> None:
    monkeypatch.setattr(pipeline_folder, "_named_as_in", lambda model, stored: None)
    expected = load_components(base).text_encoders[0].model.state_dict()
    found = load_text_encoder(folder, None).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_half_precision_is_read_in_single(base: BaseModel, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base.path, tmp_path / "half"))
    for path in copy.glob("*/*.safetensors"):
        save_file({name: its.half() for name, its in load_file(path).items()}, path, {"format": "pt"})
    components = load_components(replace(base, kind="folder", path=copy))
    original = load_components(base).unet.state_dict()
    for name, tensor in components.unet.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original[name].half().float())


def test_loading_makes_no_second_copy_and_imports_no_pipeline(tmp_path: Path) -> None:
    found = loading(tmp_path / "base", 136)
    assert found["weights MB"] > 120
    assert found["loading over weights"] < 0.3  # it is a mapping of the file until it is read
    assert found["loading and reading over weights"] < 1.2
    assert not found["loading imports a pipeline"]
