"""Weights that are updated during the backward pass come out as if they were updated after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from attnbooth_cli.engine import footprint, loop, optimizers
from attnbooth_cli.engine.conditioning import Subject
from attnbooth_cli.engine.loop import Progress, optimizer_tensors, run_stage
from attnbooth_cli.engine.methods import AdamW, Stage
from tests.engine.conftest import make_source
from tests.engine.test_loop import ATTENTION, EMBEDDING, UNET

STAGES = pytest.mark.parametrize("stage", [EMBEDDING, ATTENTION, UNET], ids=lambda stage: stage.name)


def trained(subject: Subject, stage: Stage, accelerator: Accelerator, **options: object) -> dict[str, Tensor]:
    """Weights and moments after three steps; the weights are put back."""
    found: dict[str, Tensor] = {}

    def after_step(progress: Progress) -> None:
        if progress.step == stage.steps:
            found.update({name: its.detach().clone() for name, its in progress.parameters.items()})
            found.update({name: its.clone() for name, its in optimizer_tensors(progress).items()})

    before = {name: its.detach().clone() for name, its in loop.trainable_parameters(subject, stage).items()}
    source = make_source(subject.components)
    run_stage(stage, subject, source, accelerator, AdamW(), after_step=after_step, **options)
    with torch.no_grad():
        for name, its in loop.trainable_parameters(subject, stage).items():
            its.copy_(before[name])
    return found


@STAGES
@pytest.mark.parametrize("checkpoint", [False, True])
def test_weights_and_moments_are_those_of_updates_afterwards(
    subject: Subject, accelerator: Accelerator, stage: Stage, checkpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(stage, steps=3)
    results = []
    for held in (1, 100_000, 2**60):
        monkeypatch.setattr(footprint, "GRADIENTS_HELD", held)
        results.append(trained(subject, stage, accelerator, gradient_checkpointing=checkpoint))
    assert results[0].keys() == results[1].keys() == results[2].keys()
    assert all(torch.equal(one[name], results[2][name]) for one in results[:2] for name in one)


def test_gradients_go_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of layers of the same size: never are more gradients held than was asked for and the one that came."""
    layers = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(12)])
    optimizer = torch.optim.AdamW(layers.parameters())
    held = []
    for layer in layers:
        layer.weight.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(its.weight.grad is not None for its in layers))
        )
    monkeypatch.setattr(footprint, "GRADIENTS_HELD", 3 * layers[0].weight.nbytes)
    before = [layer.weight.detach().clone() for layer in layers]
    with optimizers.updating_early(optimizer, list(layers.parameters())) as updates:
        layers(torch.ones(2, 16)).sum().backward()
    assert updates.begun
    assert updates.waiting == 0
    assert held == [1, 2, 3] * 4
    assert all(layer.weight.grad is None for layer in layers)
    assert not any(torch.equal(layer.weight, was) for layer, was in zip(layers, before, strict=True))
    layers(torch.ones(2, 16)).sum().backward()
    assert all(layer.weight.grad is not None for layer in layers), "nothing is updated outside of the block"


@pytest.mark.parametrize(
    ("stage", "constants", "micro_batch_size"),
    [
        (UNET, AdamW(max_gradient_norm=1.0), 0),
        (UNET, AdamW(), 1),
        (replace(UNET, prior_weight=1.0), AdamW(), 0),
        (replace(EMBEDDING, context_weight=1.0), AdamW(), 0),
    ],
)
def test_gradients_that_are_needed_together_stay(
    stage: Stage, constants: AdamW, micro_batch_size: int, accelerator: Accelerator
) -> None:
    """Their norm, or what other backward passes add to them."""
    assert not loop.updates_early(stage, accelerator, constants, "adamw", micro_batch_size)
    assert loop.updates_early(replace(UNET, batch_size=2), accelerator, AdamW(), "adamw", 2)


def test_a_step_that_was_begun_is_not_done_again(
    subject: Subject, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that ends amid the updates ends the run: half of the weights would take the step twice."""
    monkeypatch.setattr(footprint, "GRADIENTS_HELD", 100_000)
    lowered: list[int] = []
    real = loop.accumulate_gradients

    def fails(*arguments: object) -> object:
        real(*arguments)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "accumulate_gradients", fails)
    with pytest.raises(torch.OutOfMemoryError):
        run_stage(UNET, subject, make_source(subject.components), accelerator, AdamW(), lowered=lowered.append)
    assert lowered == []


def test_the_moments_are_there_before_the_first_step(subject: Subject, accelerator: Accelerator) -> None:
    """So that what does not fit is found out before any weight is changed."""
    parameters = list(loop.trainable_parameters(subject, UNET).values())
    optimizer = optimizers.make("adamw", [{"params": parameters}], 1e-3, AdamW(), torch.device("cpu"))
    optimizers.begin(optimizer, parameters)
    state = optimizer.state_dict()["state"]
    assert len(state) == len(parameters)
    for number, parameter in enumerate(parameters):
        assert optimizers.fits("adamw", state[number], parameter)
        assert all(not its.any() for its in state[number].values())
