"""A finished concept: its files, its checks, and that plain diffusers makes the same pictures from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from attnbooth_cli.engine import concept
from attnbooth_cli.engine.base_models import bundled_folder
from attnbooth_cli.engine.families import load_components
from attnbooth_cli.engine.generation import generate
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.training import train
from attnbooth_cli.errors import DamagedError
from attnbooth_cli.project.project import Project
from tests.engine.conftest import EXAMPLE

SHORT = tuple(
    f"train.{stage}.{key}" for stage in ("embedding", "attention", "unet") for key in ("steps=3", "batch_size=2")
)


def make(root: Path, vectors: int = 1, **options) -> Project:
    init(root, images=[EXAMPLE], category="cat", model="tiny", token="<it>")
    manifest = root / "attnbooth.toml"
    manifest.write_text(manifest.read_text().replace('images = "images"', f'images = "images"\nvectors = {vectors}'))
    return train(root, options=TrainOptions(settings=(*SHORT, "train.unet.learning_rate=1e-4"), **options))


@pytest.fixture(scope="module", params=[1, 2])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make(tmp_path_factory.mktemp("concept") / "p", request.param)


def test_plain_diffusers_makes_the_same_picture(trained: Project) -> None:
    """The three lines of the README."""
    made = generate(trained.root, ["a photo of a {} on the beach"], steps=4, seed=3)
    pipeline = StableDiffusionPipeline.from_pretrained(bundled_folder()).to(torch.float32)
    pipeline.load_textual_inversion(trained.concept / "learned_embeds.safetensors")
    pipeline.unet = UNet2DConditionModel.from_pretrained(trained.concept / "unet").to(torch.float32)
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a photo of a <it> cat on the beach",
        num_inference_steps=4,
        guidance_scale=made.settings.guidance,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    from PIL import Image

    ours = Image.open(made.pictures[0].path)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_the_embedding_file_has_the_form_textual_inversion_loaders_read(trained: Project) -> None:
    path = trained.concept / "learned_embeds.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert list(file.keys()) == ["<it>"]
    (rows,) = load_file(path).values()
    vectors = json.loads((trained.concept / "concept.json").read_text())["plan"]["concept"]["vectors"]
    assert rows.shape == (vectors, 128)
    assert rows.dtype == torch.float32


def test_saved_precision(trained: Project, tmp_path: Path) -> None:
    half = load_file(trained.concept / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    whole = make(tmp_path / "w", save_precision="float32")
    tensors = load_file(whole.concept / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_attention_stage_is_kept_as_changed_tensors_only(trained: Project) -> None:
    kept = load_file(trained.concept / "stages" / "attention.safetensors")
    assert kept
    assert all(".attn2." in name for name in kept)


def test_every_stage_loads_as_it_was(trained: Project) -> None:
    card = concept.read_card(trained)
    base = load_components(concept_base())
    pristine = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    changed = {}
    for stage in card.stages:
        components = load_components(concept_base())
        concept.apply(trained, card, stage, components)
        tensors = components.unet.state_dict()
        changed[stage] = {name for name in pristine if not torch.equal(pristine[name], tensors[name])}
    assert changed["embedding"] == set()
    assert changed["attention"]
    assert all(".attn2." in name for name in changed["attention"])
    assert changed["attention"] < changed["unet"]


@pytest.mark.parametrize("name", ["learned_embeds.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_a_flipped_bit_is_noticed(trained: Project, tmp_path: Path, name: str) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained.root, root)
    path = root / "concept" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="damaged"):
        generate(root, ["a {}"], steps=1)


def test_a_concept_that_is_replaced_while_it_is_read_is_not_taken_for_the_former(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(Path(shutil.copytree(trained.root, tmp_path / "p")))
    card = concept.read_card(project)
    verify = concept.verify

    def and_then_published(*checked: object) -> None:
        verify(*checked)
        monkeypatch.setattr(concept, "verify", verify)
        concept.publish_again(project.concept, card, "attention")

    monkeypatch.setattr(concept, "verify", and_then_published)
    with pytest.raises(DamagedError, match="was replaced while it was read"):
        concept.apply(project, card, "attention", load_components(concept_base()))


def test_the_card_says_what_it_was_made_with(trained: Project) -> None:
    card = json.loads((trained.concept / "concept.json").read_text())
    assert card["token"] == "<it>"
    assert card["base"]["model"] == "tiny"
    assert len(card["base"]["sha256"]) == 64
    assert card["plan"]["stages"][0]["steps"] == 3
    assert set(card["files"]) == {
        str(path.relative_to(trained.concept))
        for path in trained.concept.rglob("*")
        if path.is_file() and path.name != "concept.json"
    }


def test_a_moved_project_still_works(trained: Project, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(trained.root, root)
    assert generate(root, ["a {}"], steps=1).pictures[0].path.is_relative_to(root)


def concept_base():
    from attnbooth_cli.engine.base_models import resolve

    return resolve("tiny")
