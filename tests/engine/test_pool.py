"""A base model kept for many concepts is, for each, the one that was loaded: bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbooth_cli.engine import families
from attnbooth_cli.engine.base_models import BaseModel, resolve
from attnbooth_cli.engine.families import ComponentPool, Components, load_components
from attnbooth_cli.engine.generation import load_base
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.tokens import add_placeholder, placeholder, write_rows
from attnbooth_cli.engine.training import train
from attnbooth_cli.errors import StoppedError
from attnbooth_cli.events import Event, Stepped
from tests.engine.conftest import EXAMPLE

SETTINGS = tuple(
    f"train.{stage}.{key}" for stage in ("embedding", "attention", "unet") for key in ("steps=2", "batch_size=1")
)


def everything(components: Components) -> dict[str, Tensor]:
    """Every tensor of a base model."""
    models = {"unet": components.unet, "vae": components.vae}
    models |= {f"text {k}": encoder.model for k, encoder in enumerate(components.text_encoders)}
    return {f"{part}.{name}": its for part, model in models.items() for name, its in model.state_dict().items()}


def build(components: Components) -> list[tuple[str, type, bool, bool]]:
    """Every module's name, class and mode, and whether anything of it learns."""
    models = (components.unet, components.vae, *(encoder.model for encoder in components.text_encoders))
    return [
        (name, type(its), its.training, any(own.requires_grad for own in its.parameters()))
        for model in models
        for name, its in model.named_modules()
    ]


def processors(components: Components) -> list[type]:
    found: dict[str, Any] = components.unet.attn_processors
    return [type(its) for its in found.values()]


def stopped_in_the_last_stage(root: Path, pool: ComponentPool, options: TrainOptions) -> None:
    """Trains up to the first step of the last stage, which leaves what that stage has put on the model."""
    seen: list[Stepped] = []

    def note(event: Event) -> None:
        if isinstance(event, Stepped):
            seen.append(event)

    init(root, images=[EXAMPLE], category="cat", model="tiny")
    with pytest.raises(StoppedError):
        train(
            root,
            options=options,
            emit=note,
            pool=pool,
            should_stop=lambda: int(bool(seen) and seen[-1].stage == "unet"),
        )
    assert seen[-1].stage == "unet"


@pytest.mark.parametrize("method", ["attndreambooth", "lora", "neti"])
def test_a_kept_base_model_is_given_out_as_it_was_loaded(method: str, tmp_path: Path) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    base = resolve("tiny")
    pool = ComponentPool(keep=True)
    first = pool.take(base)
    options = TrainOptions(method=method, settings=SETTINGS)
    if method == "neti":
        init(tmp_path / "p", images=[EXAMPLE], category="cat", model="tiny")
        train(tmp_path / "p", options=TrainOptions(method=method, smoke=True), pool=pool)
    else:
        stopped_in_the_last_stage(tmp_path / "p", pool, options)
    again, fresh = pool.take(base), load_components(base)
    assert again is first  # not loaded again
    loaded, restored = everything(fresh), everything(again)
    assert loaded.keys() == restored.keys()
    different = [name for name in loaded if not torch.equal(loaded[name], restored[name])]
    assert different == []
    assert build(again) == build(fresh)
    assert processors(again) == processors(fresh)
    assert again.prompting is None
    assert again.text_encoders[0].tokenizer.get_vocab() == fresh.text_encoders[0].tokenizer.get_vocab()


def test_rows_no_word_uses_are_given_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models have a longer table than their tokenizer has words, and [V] is then written into its last rows."""

    def load(base: BaseModel) -> Components:
        components = load_components(base)
        (encoder,) = components.text_encoders
        with torch.random.fork_rng(devices=[]):
            encoder.model.resize_token_embeddings(len(encoder.tokenizer) + 8, mean_resizing=False)
        return components

    monkeypatch.setattr(families, "load_components", load)
    base, pool = resolve("tiny"), ComponentPool(keep=True)
    components = pool.take(base)
    (encoder,) = components.text_encoders
    before = encoder.model.get_input_embeddings().weight.clone()
    concept = placeholder("<thing>", 2, "cat", True)
    write_rows(
        encoder.tokenizer, encoder.model, concept, add_placeholder(encoder.tokenizer, encoder.model, concept) + 1
    )
    assert not torch.equal(encoder.model.get_input_embeddings().weight, before)
    pool.take(base)
    assert torch.equal(encoder.model.get_input_embeddings().weight, before)


def test_weights_that_sampling_has_rounded_are_not_given_out_again() -> None:
    pool, base = ComponentPool(keep=True), resolve("tiny")
    expected = {name: tensor.clone() for name, tensor in pool.take(base).vae.state_dict().items()}
    load_base(base, "cpu", "bf16", pool)
    components = pool.take(base)
    assert {components.unet.dtype, components.vae.dtype} == {torch.float32}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in components.vae.state_dict().items())
