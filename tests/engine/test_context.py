"""CoRe's terms against plain loops, what they leave out, and where their gradients go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from attnbooth_cli.engine import context
from attnbooth_cli.engine.conditioning import Subject, conditioning_of, recording
from attnbooth_cli.engine.families import FAMILIES, Components
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.loop import checkpointing
from attnbooth_cli.engine.methods import CORE
from attnbooth_cli.engine.objective import accumulate_gradients, context_loss
from attnbooth_cli.engine.preparation import TrainOptions, prepare
from attnbooth_cli.engine.prompts import COMPLEX, DREAMBOOTH, EVALUATION
from attnbooth_cli.errors import InputError
from tests.engine.conftest import EXAMPLE, latent_shape, make_source


def test_no_prompt_is_one_that_is_scored() -> None:
    scored = {
        prompt
        for sets in (*EVALUATION.values(), *COMPLEX.values(), *DREAMBOOTH.values())
        for group in sets.values()
        for prompt in group
    }
    assert len(scored) > 60
    assert not scored & set(context.PROMPTS)
    assert all(prompt.count("{}") == 1 for prompt in context.PROMPTS)


def test_the_terms_are_the_authors_sums() -> None:
    """Two samples of which the second has three tokens to compare, and two of padding, which count for nothing."""
    generator = torch.Generator().manual_seed(0)
    sizes = (5, 3)
    e, f = (torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    shares = torch.zeros(2, 5, dtype=torch.float64)
    by_hand = 0.0
    for sample, size in enumerate(sizes):
        shares[sample, :size] = 1 / size
        for i in range(size):
            cosine = e[sample, i] @ f[sample, i] / e[sample, i].norm() / f[sample, i].norm()
            by_hand += (1 - float(cosine)) / size
    assert float(context.embedding_regularisation(e, f, shares)) == pytest.approx(by_hand, abs=1e-12)
    mine, theirs = ([torch.rand(2, 5, generator=generator, dtype=torch.float64) for _ in range(3)] for _ in range(2))
    total = 0.0
    for layer, other in zip(mine, theirs, strict=True):
        for sample, size in enumerate(sizes):
            total += float(F.mse_loss(layer[sample, :size], other[sample, :size])) / len(mine)
    assert float(context.attention_regularisation(mine, theirs, shares)) == pytest.approx(total, abs=1e-12)


def regularisation(subject: Subject, rows: Tensor, prompts: list[str], weights: tuple[float, float]) -> Tensor:
    components = subject.components
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(len(prompts), *latent_shape(components), generator=generator)
    times = torch.arange(len(prompts)) * 100 + 300
    terms = context.context_regularisation(components, subject.placeholder, rows, prompts, noisy, times, weights)
    with terms as found:
        return found


def test_the_categorys_own_embedding_has_nothing_to_regularise(components: Components, subject: Subject) -> None:
    (encoder,) = components.text_encoders
    category, *_ = encoder.tokenizer("cat", add_special_tokens=False).input_ids
    row = encoder.model.get_input_embeddings().weight[[category]].detach().clone()
    prompts = ["a {} in the woods", "a {} at sunset"]
    assert float(regularisation(subject, row, prompts, (1.0, 1.0))) < 1e-6
    other = row + 0.05 * torch.randn(row.shape, generator=torch.Generator().manual_seed(0))
    of_encodings, of_maps = (float(regularisation(subject, other, prompts, w)) for w in ((1.0, 0.0), (0.0, 1.0)))
    assert of_encodings > 1e-5
    assert of_maps > 1e-9
    both = float(regularisation(subject, other, prompts, (2.0, 3.0)))
    assert both == pytest.approx(2 * of_encodings + 3 * of_maps, rel=1e-4)


def kept(tokenizer: Any, text: str, phrase: str) -> list[int]:
    """Where a prompt's tokens are, its start and end with them, but for those of one phrase in it."""
    count = len(tokenizer(phrase, add_special_tokens=False).input_ids)
    start = len(tokenizer(text.partition(phrase)[0].strip()).input_ids) - 1
    return [place for place in range(len(tokenizer(text).input_ids)) if not start <= place < start + count]


@torch.no_grad()
def test_what_is_compared_is_all_but_the_concept_up_to_the_end(components: Components, subject: Subject) -> None:
    """Worked out from two encodings a prompt; a category of two pieces shifts what comes after it."""
    (encoder,) = components.text_encoders
    encode = FAMILIES[components.family].encode
    prompts = ["a drawing of a {} in the woods", "a {} at sunset"]
    for category in ("cat", "teddy bear"):
        concept = replace(subject.placeholder, category=category)
        nothing = torch.zeros(2, 1), torch.zeros(2)
        with context.context_regularisation(components, concept, subject.rows, prompts, *nothing, (1.0, 0.0)) as terms:
            found = float(terms)
        encoder.model.get_input_embeddings().weight[-1] = subject.rows[0]
        expected = 0.0
        for prompt in prompts:
            sides = []
            for phrase in ("<it>", category):
                text = prompt.replace("{}", phrase)
                (encoding,) = encode(components, [text])["encoder_hidden_states"]
                sides.append(encoding[kept(encoder.tokenizer, text, phrase)])
            expected += float((1 - F.cosine_similarity(*sides)).mean())
        assert found == pytest.approx(expected, rel=1e-4)


def projections(components: Components, text: str, noisy: Tensor) -> dict[str, Tensor]:
    """Queries and keys of every cross-attention layer in one pass at time 300, by the names of their projections."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _module, _arguments, output, name=name: seen.update({name: output}))
        for name, module in components.unet.named_modules()
        if name.endswith(("attn2.to_q", "attn2.to_k"))
    ]
    conditioning = FAMILIES[components.family].encode(components, [text])
    components.unet(noisy, torch.tensor([300]), **conditioning, return_dict=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_the_maps_term_from_the_layers_own_queries_and_keys(components: Components, subject: Subject) -> None:
    (encoder,) = components.text_encoders
    prompt = "a drawing of a {} in the woods"
    found = float(regularisation(subject, subject.rows, [prompt], (0.0, 1.0)))
    encoder.model.get_input_embeddings().weight[-1] = subject.rows[0]
    noisy = torch.randn(1, *latent_shape(components), generator=torch.Generator().manual_seed(3))
    sides = []
    for phrase in ("<it>", "cat"):
        text = prompt.replace("{}", phrase)
        seen = projections(components, text, noisy)
        means = {}
        for name in [name.removesuffix(".to_q") for name in seen if name.endswith("to_q")]:
            layer = components.unet.get_submodule(name)
            q, k = (seen[f"{name}.{its}"][0].double().unflatten(-1, (layer.heads, -1)) for its in ("to_q", "to_k"))
            maps = (torch.einsum("phd,thd->hpt", q, k) * layer.scale).softmax(-1)
            means[name] = maps.mean((0, 1))[kept(encoder.tokenizer, text, phrase)]
        sides.append(means)
    assert len(sides[0]) > 3
    expected = sum(float(F.mse_loss(sides[0][name], sides[1][name])) for name in sides[0]) / len(sides[0])
    assert expected > 0
    assert found == pytest.approx(expected, rel=1e-3)


def test_gradients_reach_the_embedding_alone_and_batches_split(
    components: Components, subject: Subject, accelerator: Accelerator
) -> None:
    source = make_source(components)
    stage = replace(CORE.stages[0], batch_size=4, context_weight=1.0, context_attention_weight=1.0)
    subject.rows.requires_grad_(True)
    conditioning = conditioning_of(stage, subject, source, accelerator)
    gradients = []
    for micro_batch_size in (0, 1):
        subject.rows.grad = None
        losses = accumulate_gradients(stage, 3, subject, source, accelerator, conditioning, None, micro_batch_size)
        gradients.append((losses.attention, subject.rows.grad.clone()))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-4)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in components.unet.parameters())
    batch = source.batch("embedding", 3, range(4), 4)
    with context_loss(stage, 3, range(4), subject, source, batch, accelerator) as alone:
        assert gradients[0][0] == pytest.approx(float(alone.detach()), rel=1e-4)
    subject.rows.requires_grad_(False)


def test_gradient_checkpointing_gives_the_same_gradients(
    components: Components, subject: Subject, accelerator: Accelerator
) -> None:
    """What is computed again in the backward pass must be what was read in the forward pass."""
    source = make_source(components)
    stage = replace(CORE.stages[0], batch_size=2, context_weight=1.0, context_attention_weight=1.0)
    subject.rows.requires_grad_(True)
    found = []
    for wanted in (False, True):
        subject.rows.grad = None
        with checkpointing(components.unet, wanted), recording(stage, subject) as recorder:
            conditioning = conditioning_of(stage, subject, source, accelerator)
            losses = accumulate_gradients(stage, 0, subject, source, accelerator, conditioning, recorder, 0)
        found.append((losses.attention, subject.rows.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)
    subject.rows.requires_grad_(False)


def test_it_is_off_by_default_and_belongs_to_the_first_stage(tmp_path: Path) -> None:
    init(tmp_path / "p", images=[EXAMPLE], category="cat", model="tiny", token="<it>")
    assert not any(stage.contextual for stage in prepare(tmp_path / "p", TrainOptions()).plan.stages)
    with pytest.raises(InputError, match="has no context regularisation"):
        prepare(tmp_path / "p", TrainOptions(settings=("train.unet.context_weight=0.1",)))
