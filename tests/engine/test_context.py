"""CoRe's terms against plain loops, what they leave out, and where their gradients go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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


def test_the_terms_are_the_papers_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    e, f = (torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    by_hand = sum(
        (1 - float(e[s, i] @ f[s, i] / e[s, i].norm() / f[s, i].norm())) / 5 for s in range(2) for i in range(5)
    )
    assert float(context.embedding_regularisation(e, f)) == pytest.approx(by_hand, abs=1e-12)
    layers = [[torch.rand(2, p, 5, generator=generator, dtype=torch.float64) for p in (64, 16)] for _ in range(2)]
    total = 0.0
    for sample in range(2):
        for token in range(5):
            small, large = (
                torch.stack([
                    F.interpolate(layer[sample, :, token].view(1, 1, int(layer.shape[1] ** 0.5), -1), (4, 4),
                                  mode="bilinear")[0, 0]
                    for layer in maps
                ]).mean(0)
                for maps in layers
            )  # fmt: skip
            total += float((small - large).square().sum()) / 5
    assert float(context.attention_regularisation(*layers)) == pytest.approx(total, abs=1e-12)


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
    assert of_maps > 1e-7
    both = float(regularisation(subject, other, prompts, (2.0, 3.0)))
    assert both == pytest.approx(2 * of_encodings + 3 * of_maps, rel=1e-4)


@torch.no_grad()
def test_the_concepts_own_place_is_left_out(components: Components, subject: Subject) -> None:
    """Worked out from the two encodings; a category of two pieces shifts what comes after it."""
    (encoder,) = components.text_encoders
    encode = FAMILIES[components.family].encode
    for category in ("cat", "teddy bear"):
        concept = replace(subject.placeholder, category=category)
        prompts = ["a drawing of a {} in the woods"]
        nothing = torch.zeros(1, 1), torch.zeros(1)
        with context.context_regularisation(components, concept, subject.rows, prompts, *nothing, (1.0, 0.0)) as terms:
            found = float(terms)
        encoder.model.get_input_embeddings().weight[-1] = subject.rows[0]
        (told,) = encode(components, ["a drawing of a <it> in the woods"])["encoder_hidden_states"]
        (reference,) = encode(components, [f"a drawing of a {category} in the woods"])["encoder_hidden_states"]
        pieces = len(encoder.tokenizer(category, add_special_tokens=False).input_ids)
        left, right = torch.cat([told[:5], told[6:]]), torch.cat([reference[:5], reference[5 + pieces :]])
        size = min(len(left), len(right))
        expected = (1 - F.cosine_similarity(left[:size], right[:size])).mean()
        assert found == pytest.approx(float(expected), rel=1e-4)


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
