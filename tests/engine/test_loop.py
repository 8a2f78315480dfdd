"""What each stage changes, and that splits of a batch add up to exactly the batch."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from attnbooth_cli.engine import data, loop
from attnbooth_cli.engine.attention import StatisticsProcessor, cross_attention_modules
from attnbooth_cli.engine.conditioning import Subject, conditioning_of, recording
from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.loop import Progress, checkpointing, only_trainable, run_stage, trainable_parameters
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH, AdamW, Stage
from attnbooth_cli.engine.objective import StepLosses, accumulate_gradients, objective, process_share, split
from attnbooth_cli.errors import DivergedError
from tests.engine.conftest import make_source, make_subject

EMBEDDING, ATTENTION, UNET = (replace(stage, steps=2, batch_size=2) for stage in ATTNDREAMBOOTH.stages)


def everything(subject: Subject) -> dict[str, Tensor]:
    """A copy of every tensor of the model, and of [V]'s rows."""
    components = subject.components
    (encoder,) = components.text_encoders
    modules = {"unet": components.unet, "vae": components.vae, "text": encoder.model}
    tensors = {
        f"{m}.{name}": t.detach().clone() for m, module in modules.items() for name, t in module.state_dict().items()
    }
    return {**tensors, "rows": subject.rows.detach().clone()}


def train(subject: Subject, stage: Stage, accelerator: Accelerator, **options) -> list[Progress]:
    seen: list[Progress] = []
    run_stage(stage, subject, make_source(subject.components), accelerator, AdamW(), after_step=seen.append, **options)
    return seen


@pytest.mark.parametrize("stage", [EMBEDDING, ATTENTION, UNET], ids=lambda stage: stage.name)
def test_a_stage_changes_its_parameters_and_no_other_bit(
    subject: Subject, accelerator: Accelerator, stage: Stage
) -> None:
    before = everything(subject)
    seen = train(subject, stage, accelerator)
    after = everything(subject)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    unet = {name for name in before if name.startswith("unet.")}
    expected = {
        "embedding": {"rows"},
        "attention": {name for name in unet if ".attn2." in name},
        "unet": unet,
    }[stage.name]
    assert changed == expected
    assert [progress.step for progress in seen] == [1, 2]


def test_cross_attention_parameters_are_the_projections_without_norms(subject: Subject) -> None:
    names = trainable_parameters(subject, ATTENTION)
    kinds = {name.split(".attn2.")[1] for name in names}
    assert kinds == {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"}
    assert len(names) == 5 * len(cross_attention_modules(subject.components.unet))


def test_nothing_stays_trainable_and_processors_are_restored(subject: Subject, accelerator: Accelerator) -> None:
    train(subject, ATTENTION, accelerator)
    unet = subject.components.unet
    assert not any(p.requires_grad or p.grad is not None for p in unet.parameters())
    assert not any(isinstance(p, StatisticsProcessor) for p in unet.attn_processors.values())


def gradients(
    subject: Subject, stage: Stage, accelerator: Accelerator, micro_batch_size: int, *, checkpoint: bool = False
) -> tuple[dict[str, Tensor], StepLosses]:
    parameters = trainable_parameters(subject, stage)
    with (
        only_trainable(parameters),
        checkpointing(subject.components.unet, checkpoint),
        recording(stage, subject) as recorder,
    ):
        source = make_source(subject.components)
        losses = accumulate_gradients(
            stage,
            0,
            subject,
            source,
            accelerator,
            conditioning_of(stage, subject, source, accelerator),
            recorder,
            micro_batch_size,
        )
        return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}, losses


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative distance of two gradients as vectors."""
    assert one.keys() == other.keys()
    difference = torch.sqrt(sum((one[n] - other[n]).double().square().sum() for n in one))
    return float(difference / torch.sqrt(sum(one[n].double().square().sum() for n in one)))


@pytest.mark.parametrize("stage", [EMBEDDING, ATTENTION, UNET], ids=lambda stage: stage.name)
@pytest.mark.parametrize("micro_batch_size", [4, 3, 1])
def test_a_batch_of_eight_equals_its_micro_batches(
    subject: Subject, accelerator: Accelerator, stage: Stage, micro_batch_size: int
) -> None:
    """Both terms count: the weights are raised so that the regulariser is not lost beside the diffusion loss."""
    stage = replace(stage, batch_size=8, mean_weight=50.0, variance_weight=50.0)
    whole, whole_losses = gradients(subject, stage, accelerator, 0)
    parts, parts_losses = gradients(subject, stage, accelerator, micro_batch_size)
    assert distance(whole, parts) < 1e-5
    assert parts_losses.diffusion == pytest.approx(whole_losses.diffusion, rel=1e-5)
    for name in ("attention", "attention_mean", "attention_variance"):
        assert getattr(parts_losses, name) == pytest.approx(getattr(whole_losses, name), rel=1e-5)
        assert getattr(whole_losses, name) > 0
    assert whole_losses.attention == whole_losses.attention_mean + whole_losses.attention_variance


def test_in_float64_splits_agree_to_ten_digits(components: Components, accelerator: Accelerator) -> None:
    (encoder,) = components.text_encoders
    for model in (components.unet, components.vae, encoder.model):
        model.double()
    subject = make_subject(components)
    subject.rows.data = subject.rows.data.double()
    stage = replace(ATTENTION, batch_size=4, mean_weight=50.0, variance_weight=50.0)
    assert distance(gradients(subject, stage, accelerator, 0)[0], gradients(subject, stage, accelerator, 1)[0]) < 1e-10


def test_the_regulariser_is_a_sum_over_samples_and_the_diffusion_loss_a_mean(
    subject: Subject, accelerator: Accelerator
) -> None:
    """The reference's behaviour: R is a sum over the batch."""
    stage, source = replace(ATTENTION, batch_size=4), make_source(subject.components)
    conditioning = conditioning_of(stage, subject, source, accelerator)
    with recording(stage, subject) as recorder, torch.no_grad():
        whole, *single = (
            objective(
                stage,
                subject.components,
                source.batch(stage.name, 0, indices, 4),
                conditioning.of(0, indices),
                recorder,
            )
            for indices in ([0, 1, 2, 3], [0], [1], [2], [3])
        )
    attention, diffusion = (torch.stack([getattr(its, term) for its in single]) for term in ("attention", "diffusion"))
    assert float(whole.attention) == pytest.approx(float(attention.sum()), rel=1e-4)
    assert float(whole.diffusion) == pytest.approx(float(diffusion.mean()), rel=1e-4)
    assert attention.min() > 0


def test_checkpointing_gives_the_same_gradients(subject: Subject, accelerator: Accelerator) -> None:
    plain, _ = gradients(subject, UNET, accelerator, 0)
    checkpointed, _ = gradients(subject, UNET, accelerator, 0, checkpoint=True)
    assert distance(plain, checkpointed) < 1e-5


def test_without_regulariser_nothing_is_recorded(subject: Subject, accelerator: Accelerator) -> None:
    stage = replace(ATTENTION, mean_weight=0.0, variance_weight=0.0)
    with recording(stage, subject) as recorder:
        assert recorder is None
        processors = subject.components.unet.attn_processors.values()
        assert not any(isinstance(p, StatisticsProcessor) for p in processors)
    seen = train(subject, stage, accelerator)
    assert all(progress.losses.attention == 0.0 for progress in seen)
    assert all(progress.losses.attention_mean == progress.losses.attention_variance == 0.0 for progress in seen)


@pytest.mark.parametrize(("vectors", "category"), [(3, "cat"), (2, "teddy bear"), (1, "housecat")])
def test_several_vectors_and_categories_of_several_pieces_train(
    components: Components, accelerator: Accelerator, vectors: int, category: str
) -> None:
    subject = make_subject(components, vectors, category)
    before = subject.rows.detach().clone()
    for stage in (EMBEDDING, ATTENTION):
        train(subject, stage, accelerator)
    assert subject.rows.shape == (vectors, 128)
    assert ((subject.rows - before).abs().sum(dim=1) > 0).all()


def test_the_optimizer_is_the_references(subject: Subject, accelerator: Accelerator) -> None:
    """One AdamW step by hand, weight decay included: for the first step the update is lr * sign-like(g)."""
    stage = replace(EMBEDDING, steps=1)
    before = subject.rows.detach().clone()
    gradient = gradients(subject, stage, accelerator, 0)[0]["placeholder"]
    train(subject, stage, accelerator)
    decayed = before * (1 - stage.learning_rate * 1e-2)
    expected = decayed - stage.learning_rate * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(subject.rows.detach(), expected, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_training(subject: Subject, accelerator: Accelerator) -> None:
    with pytest.raises(DivergedError, match="stage attention"):
        train(subject, replace(ATTENTION, learning_rate=1e20, steps=5), accelerator)


def test_bf16_autocast_trains_float32_master_weights(components: Components) -> None:
    from attnbooth_cli.engine.devices import make_accelerator

    subject = make_subject(components)
    seen = train(subject, UNET, make_accelerator(torch.device("cpu"), "bf16"))
    assert {p.dtype for p in components.unet.parameters()} == {torch.float32}
    assert all(progress.losses.attention > 0 for progress in seen)


@pytest.mark.parametrize(("batch", "processes"), [(8, 2), (8, 3), (2, 3), (1, 2)])
def test_process_shares_cover_the_batch_once(batch: int, processes: int) -> None:
    shares = [process_share(batch, process, processes) for process in range(processes)]
    assert [index for share in shares for index in share] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_split_keeps_order_and_drops_nothing() -> None:
    assert [list(part) for part in split(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(part) for part in split(range(3), 0)] == [[0, 1, 2]]
    assert list(split(range(0), 0)) == []


def test_a_stage_announces_the_pictures_of_every_step_and_no_others(
    subject: Subject, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that on a GPU none of them is augmented while it waits; a split of the batch changes nothing of it."""
    with ThreadPoolExecutor(1) as ahead:
        source = make_source(subject.components, ahead=ahead)
        alone: list[data.Draw] = []
        augmented = data.LatentSource._augmented

        def watched(self: data.LatentSource, draw: data.Draw) -> tuple[Tensor, Hashable]:
            if threading.current_thread() is threading.main_thread():
                alone.append(draw)
            return augmented(self, draw)

        monkeypatch.setattr(data.LatentSource, "_augmented", watched)
        run_stage(EMBEDDING, subject, source, accelerator, AdamW(), micro_batch_size=1)
    assert not alone
    assert not source._coming


@pytest.mark.parametrize(("stage", "encodings"), [(EMBEDDING, 4), (ATTENTION, 1), (UNET, 1)], ids=lambda v: str(v))
def test_the_prompt_is_encoded_only_as_often_as_it_changes(
    subject: Subject, accelerator: Accelerator, stage: Stage, encodings: int
) -> None:
    """Once a micro-batch while the embedding trains; once altogether afterwards."""
    (encoder,) = subject.components.text_encoders
    calls: list[object] = []
    handle = encoder.model.register_forward_hook(lambda *_: calls.append(None))
    train(subject, stage, accelerator, micro_batch_size=1)
    handle.remove()
    assert len(calls) == encodings


def test_every_stage_begins_with_a_fresh_loss_scale() -> None:
    """A stage resumed from the former one's result must not differ from one that followed it in the same process."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))  # makes the lazily created scale real
    loop.reset_scaler(scaler, torch.device("cpu"))
    assert scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale() == loop.INITIAL_SCALE
