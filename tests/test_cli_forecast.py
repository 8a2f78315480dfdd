"""What `train --dry-run` says of memory and time before anything is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnbooth_cli.engine import execution, forecast, rates
from attnbooth_cli.engine.base_models import resolve
from attnbooth_cli.engine.preparation import TrainOptions, prepare
from tests.conftest import SHORT, Cli
from tests.engine.test_layouts import save_layout


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBOOTH_CACHE", str(tmp_path / "cache"))


def test_memory_is_told_with_what_is_free(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_host_memory", lambda: 3_500_000_000)
    done = cli("train", project, "--dry-run", "--device", "cpu")
    assert done.code == 0
    assert "in stage unet (float32); 3.5 GB are free" in done.out
    assert "not known before a first run" in done.out
    outlook = cli("train", project, "--dry-run", "--device", "cpu", "--json").document["outlook"]
    assert [stage["name"] for stage in outlook["forecast"]["stages"]] == ["embedding", "attention", "unet"]
    assert outlook["free"] == 3_500_000_000
    assert outlook["seconds"] is None


def test_smaller_micro_batches_are_named_where_they_fit(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(project, TrainOptions(device="cpu"))
    expected = forecast.forecast(prepared.plan, prepared.base)
    assert expected is not None
    assert expected.smallest < expected.peak
    monkeypatch.setattr(forecast, "free_host_memory", lambda: (expected.smallest + expected.peak) // 2)
    done = cli("train", project, "--dry-run", "--device", "cpu")
    assert done.code == 0
    assert "train.micro_batch_size=1 needs about" in done.out


def test_what_cannot_fit_is_refused_with_numbers(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_host_memory", lambda: 300_000_000)
    done = cli("train", project, "--dry-run", "--device", "cpu")
    assert done.code == 6
    assert "even one picture at a time, and 0.3 GB are free" in done.err


def test_time_is_told_by_the_rate_of_the_last_run(cli: Cli, project: Path) -> None:
    steps = [f"--set=train.{stage}.steps=6" for stage in ("embedding", "attention", "unet")]
    assert cli("train", project, *SHORT, *steps, "-q").code == 0
    rate = rates.newest("cpu", "tiny")
    assert rate is not None
    assert rate.place == "cpu float32"
    assert 1e8 < rate.operations < 1e13
    done = cli("train", project, "--dry-run", "--device", "cpu", "--json").document["outlook"]
    total = sum(stage["operations"] for stage in done["forecast"]["stages"])
    assert done["seconds"] == pytest.approx(total / rate.operations)
    assert "measured with tiny (cpu float32)" in cli("train", project, "--dry-run", "--device", "cpu").out
    assert rates.newest("cuda", "tiny") is None


def test_a_rate_of_the_same_base_model_is_preferred() -> None:
    rates.note("cpu float32", "tiny", 1e10)
    rates.note("cpu float32", "large", 2e10)
    assert [rates.newest(None, model).operations for model in ("tiny", "large", "other")] == [1e10, 2e10, 2e10]


def test_a_damaged_cache_is_an_empty_one(cli: Cli, project: Path) -> None:
    rates.rates_file().parent.mkdir()
    for text in (
        "",
        "[]",
        '{"a": 3, "b": {"place": 1}}',
        '{"a": {"place": "cpu", "model": "", "operations": "x", "noted": 0}}',
    ):
        rates.rates_file().write_text(text)
        assert "not known before" in cli("train", project, "--dry-run").out
    rates.rates_file().unlink()
    rates.rates_file().mkdir()
    rates.note("cpu float32", "tiny", 1e10)
    assert rates.newest(None, "tiny") is None


def test_the_loaded_model_is_counted_from_its_files(tmp_path: Path, project: Path) -> None:
    folder = save_layout(tmp_path / "sd21", 2)
    plan = prepare(project, TrainOptions()).plan
    small = forecast.forecast(plan, resolve(str(folder)))
    numbers = [forecast._numbers(folder / name, None) for name in ("unet", "vae", "text_encoder")]
    sizes = [sum(file.stat().st_size for file in (folder / name).glob("*.safetensors")) for name in ("unet", "vae")]
    assert small is not None
    assert [4 * number for number in numbers[:2]] == pytest.approx(sizes, rel=0.05)


def test_batches_that_would_not_fit_are_split_beforehand(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nobody could answer running out: the system ends the process."""
    from attnbooth_cli.engine import execution

    prepared = prepare(project, TrainOptions(device="cpu"))
    stages = tuple(replace(stage, batch_size=8) for stage in prepared.plan.stages_until("embedding"))
    halves = replace(prepared.plan, stages=stages, micro_batch_size=4)
    expected = forecast.forecast(halves, prepared.base)
    assert expected is not None
    monkeypatch.setattr(execution, "own_memory", lambda: 0)
    monkeypatch.setattr(execution, "free_host_memory", lambda: expected.peak)
    sizes = []
    session = execution.Session
    monkeypatch.setattr(execution, "Session", lambda *a: (sizes.append(a[8]), session(*a))[1])
    flags = (*SHORT, "--until=embedding", "--set=train.embedding.batch_size=8")
    done = cli("train", project, *flags)
    assert done.code == 0
    assert "4 pictures at a time: whole batches would not fit" in done.err
    for memory in ("high", "auto"):
        monkeypatch.setattr(execution, "free_host_memory", lambda: 10**12)
        again = cli("train", project, *flags, "--memory", memory, "--restart")
        assert "pictures at a time" not in again.err
    assert sizes == [4, 0, 0]


def test_freed_memory_goes_back_to_the_system_only_where_a_run_is_tight(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs time."""
    prepared = prepare(project, TrainOptions(device="cpu", settings=tuple(its.removeprefix("--set=") for its in SHORT)))
    plan = replace(prepared.plan, stages=prepared.plan.stages_until("embedding"))
    expected = forecast.forecast(plan, prepared.base)
    assert expected is not None
    said: list[str] = []
    monkeypatch.setattr(execution, "return_large_blocks", lambda: said.append("given back"))
    monkeypatch.setattr(execution, "own_memory", lambda: 0)
    for room, heard in ((3 * expected.peak, []), (int(1.5 * expected.peak), ["given back"])):
        monkeypatch.setattr(execution, "free_host_memory", lambda room=room: room)
        assert cli("train", project, *SHORT, "--restart", "--until", "embedding", "-q").code == 0
        assert said == heard


def test_what_is_not_asked_for_is_not_forecast(cli: Cli, project: Path) -> None:
    """The hint of a refusal is to train less: it must help."""
    whole, part = (
        cli("train", project, "--device", "cpu", "--dry-run", "--json", *until).document["outlook"]["forecast"]
        for until in ((), ("--until", "attention"))
    )
    assert [stage["name"] for stage in part["stages"]] == ["embedding", "attention"]
    assert whole["stages"][:2] == part["stages"]
    assert part["smallest"] < whole["smallest"]
