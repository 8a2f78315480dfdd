"""The loop that trains the tiny pipeline: exact resumption, the same update from one process and from two."""

import functools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.tiny import training
from tools.tiny.training import Draw, Modules, Schedule, load_average, train

SCHEDULE = Schedule(steps=6, batch_size=8, learning_rate=1e-2, warm_up=2, cool_down=0)


def build(frozen: bool = False) -> dict[str, nn.Module]:
    body = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(not frozen)
    return {"body": body, "head": nn.Linear(4, 2)}


def loss(
    modules: Modules, draw: Draw, progress: float, interrupted_at: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    if draw.step == interrupted_at and draw.rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    dtype = next(modules["head"].parameters()).dtype
    pictures = draw.normal(3, 4, 4).to(dtype)
    error = modules["head"](modules["body"](pictures).mean((2, 3))).float() - draw.uniform(2)
    return error.square().mean(), {"progress": progress}


def weights(modules: Modules) -> Tensor:
    return torch.cat([p.detach().flatten() for module in modules.values() for p in module.parameters()])


def trained(folder: Path, schedule: Schedule = SCHEDULE, processes: int = 1, precision: str = "float32") -> Tensor:
    modules = train(build, loss, schedule, folder, processes=processes, precision=precision, log_every=1)
    assert modules is not None
    return weights(modules)


def replaced(**changes: object) -> Schedule:
    return Schedule(**({**SCHEDULE.__dict__, **changes}))


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / training.CURVE).read_text().splitlines()]


def test_rate_warms_up_stays_and_cools_down():
    schedule = Schedule(steps=10, batch_size=1, learning_rate=1.0, warm_up=4, cool_down=4)
    rates = [schedule.rate(step) for step in range(11)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    assert [replaced(warm_up=0).rate(step) for step in (0, 5)] == [1e-2, 1e-2]


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path, precision):
    trained(tmp_path / "whole", precision=precision)
    trained(tmp_path / "parts", replaced(steps=3), precision=precision)
    (tmp_path / "parts" / (training.STATE + ".partial")).write_bytes(b"cut off")
    trained(tmp_path / "parts", precision=precision)
    assert_same_tensors(tmp_path / "whole", tmp_path / "parts")
    curves = [[line | {"seconds": 0} for line in lines(tmp_path / name)] for name in ("whole", "parts")]
    # The whole run knew from the start that it would have six steps.
    assert [line | {"progress": 0} for line in curves[0]] == [line | {"progress": 0} for line in curves[1]]


def assert_same_tensors(one: Path, other: Path) -> None:
    with (
        training.safe_open(one / training.STATE, framework="pt") as a,
        training.safe_open(other / training.STATE, framework="pt") as b,
    ):
        for name in training.VECTORS:
            assert torch.equal(a.get_tensor(name), b.get_tensor(name)), name


def test_signal_saves_and_the_next_call_continues(tmp_path):
    interrupted = functools.partial(loss, interrupted_at=3)
    with pytest.raises(SystemExit) as ended:
        train(build, interrupted, SCHEDULE, tmp_path / "parts", precision="float32")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    header = training.saved_header(tmp_path / "parts")
    assert header is not None
    assert header.step == 4
    trained(tmp_path / "whole")
    trained(tmp_path / "parts")
    assert_same_tensors(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_make_the_update_of_one_and_stop_together(tmp_path):
    whole = trained(tmp_path / "one")
    interrupted = functools.partial(loss, interrupted_at=2)
    with pytest.raises(SystemExit):
        train(build, interrupted, SCHEDULE, tmp_path / "two", processes=2, precision="float32")
    shared = trained(tmp_path / "two", processes=2)
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-6)


def test_draws_of_two_processes_are_the_halves_of_one():
    one = Draw(seed=1, step=2, batch_size=6)
    halves = [Draw(seed=1, step=2, batch_size=6, rank=rank, processes=2) for rank in (0, 1)]
    for draw in (lambda d: d.indices(100), lambda d: d.normal(2, 3), lambda d: d.uniform()):
        assert torch.equal(draw(one), torch.cat([draw(half) for half in halves]))
    assert not torch.equal(Draw(1, 3, 6).uniform(), Draw(1, 2, 6).uniform())


def test_average_follows_the_weights(tmp_path):
    masters = []
    for steps in (1, 2):
        trained(tmp_path / str(steps), replaced(steps=steps))
        with training.safe_open(tmp_path / str(steps) / training.STATE, framework="pt") as saved:
            masters.append((saved.get_tensor("weights"), saved.get_tensor("average")))
    (_, before), (weights_after, average_after) = masters
    torch.testing.assert_close(average_after, torch.lerp(before, weights_after, 1 - 3 / 12))


def test_average_of_an_unfinished_training(tmp_path):
    assert train(build, loss, SCHEDULE, tmp_path, precision="float32", minutes=0) is None
    modules = build()
    assert load_average(tmp_path, modules) == 1
    assert torch.equal(weights(modules), trained(tmp_path, replaced(steps=1)))


def test_frozen_parameters_come_back_as_built_in_full_precision(tmp_path):
    frozen = functools.partial(build, frozen=True)
    modules = train(frozen, loss, SCHEDULE, tmp_path, precision="bf16")
    assert modules is not None
    torch.manual_seed(SCHEDULE.seed)
    before = build()
    assert torch.equal(modules["body"].weight, before["body"].weight)
    assert not torch.equal(modules["head"].weight, before["head"].weight)


def test_automatic_precision_is_kept(tmp_path):
    trained(tmp_path, replaced(steps=1), precision="auto")
    header = training.saved_header(tmp_path)
    assert header is not None
    assert header.precision in ("bf16", "float32")


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 4}, {"learning_rate": 1.0}, {"warm_up": 3}])
def test_another_schedule_is_refused(tmp_path, change):
    trained(tmp_path, replaced(steps=1))
    with pytest.raises(ValueError, match=f"{next(iter(change))} .* -> "):
        trained(tmp_path, replaced(**change))


def test_fewer_steps_than_done_are_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match="6 steps, more than the 5"):
        trained(tmp_path, replaced(steps=5))


def test_other_modules_are_refused(tmp_path):
    trained(tmp_path, replaced(steps=1))
    with pytest.raises(ValueError, match="other modules"):
        train(functools.partial(build, frozen=True), loss, SCHEDULE, tmp_path)


def test_curve_forgets_the_steps_after_the_saved_state(tmp_path):
    trained(tmp_path, replaced(steps=3))
    with (tmp_path / training.CURVE).open("a") as file:
        file.write('{"step": 5, "loss": 9}\n{"step": 6, "lo')
    trained(tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
