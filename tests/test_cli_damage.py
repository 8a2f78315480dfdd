"""Damaged files, full disks, read-only places and runs that diverge: refused or repaired, and nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnbooth_cli.engine.methods import Stage
from tests.conftest import (
    EXAMPLE,
    SHORT,
    Cli,
    example_project,
    flip_byte,
    leftovers,
    mounted,
    pictures,
    read_only,
    snapshot,
    weights,
)

RUN = Path("runs") / "001-attndreambooth"
ATTENTION = (*SHORT, "--until", "attention", "--json")
EMBEDDING = ("--until", "embedding", "--set=train.embedding.steps=2", "--set=train.embedding.batch_size=1")


def after_attention(project: Path) -> bytes:
    return (project / "concept" / "stages" / "attention.safetensors").read_bytes()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "damage"),
    [("weights.safetensors", flip_byte), ("optimizer.safetensors", truncate), ("checkpoint.json", Path.unlink)],
    ids=["a flipped bit", "cut short", "never finished"],
)
def test_a_damaged_checkpoint_is_skipped_aloud_for_the_one_before(
    cli: Cli, interrupted: Path, trained_once: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Users complain that an interrupted save leaves a corrupt checkpoint and the good one is deleted already."""
    damage(interrupted / RUN / "checkpoints" / "attention-000005" / name)
    done = cli("train", interrupted, *ATTENTION)
    assert done.code == 0
    assert "note: skipped: " in done.err
    assert "attention-000005" in done.err
    assert done.named("start")[0]["resumed_from"] == "attention 4"
    assert after_attention(interrupted) == after_attention(trained_once)


def test_without_a_whole_checkpoint_the_stage_is_done_again(cli: Cli, interrupted: Path, trained_once: Path) -> None:
    for path in (interrupted / RUN / "checkpoints").glob("*/weights.safetensors"):
        flip_byte(path)
    done = cli("train", interrupted, *ATTENTION)
    assert done.code == 0
    assert done.err.count("note: skipped: ") == 2
    assert done.named("step")[0]["step"] == 1
    assert after_attention(interrupted) == after_attention(trained_once)


def test_what_a_repeated_stage_saves_is_not_pruned_for_damaged_later_ones(cli: Cli, interrupted: Path) -> None:
    from attnbooth_cli.engine.training import resume
    from attnbooth_cli.errors import StoppedError

    for path in (interrupted / RUN / "checkpoints").glob("*/weights.safetensors"):
        flip_byte(path)
    asked = iter(range(1, 1000))
    with pytest.raises(StoppedError):  # asked twice before the first step, and then after it
        resume(interrupted, should_stop=lambda: 15 if next(asked) == 3 else 0)
    assert [path.name for path in (interrupted / RUN / "checkpoints").iterdir()] == ["attention-000001"]
    assert cli("train", interrupted, *ATTENTION).named("start")[0]["resumed_from"] == "attention 1"


def test_a_damaged_stage_is_done_again(cli: Cli, interrupted: Path, trained_once: Path) -> None:
    flip_byte(interrupted / RUN / "stages" / "embedding" / "weights.safetensors")
    done = cli("train", interrupted, *ATTENTION)
    assert done.code == 0
    assert "stage embedding is done again" in done.err
    assert [event["stage"] for event in done.named("stage")] == ["embedding", "embedding", "attention", "attention"]
    assert after_attention(interrupted) == after_attention(trained_once)


@pytest.mark.parametrize("command", ["train", "resume"])
@pytest.mark.parametrize("damage", [flip_byte, truncate, Path.unlink], ids=["changed", "cut short", "deleted"])
def test_a_damaged_concept_is_made_again(
    cli: Cli, trained: Path, trained_once: Path, damage: Callable[[Path], None], command: str
) -> None:
    damage(trained / "concept" / "unet" / "diffusion_pytorch_model.safetensors")
    refused = cli("generate", trained, "a {}")
    assert (refused.code, f"attnbooth resume {trained}" in refused.err) == (5, True)
    done = cli(command, trained, *(SHORT if command == "train" else ()), "--json")
    assert (done.code, "it is made again" in done.err) == (0, True)
    assert {event["stage"] for event in done.named("step")} == {"unet"}
    assert weights(trained) == weights(trained_once)


def test_status_names_the_newest_checkpoint(cli: Cli, interrupted: Path) -> None:
    """Not the last of the alphabet: "embedding" comes after "attention"."""
    source = next((interrupted / RUN / "checkpoints").glob("attention-*"))
    for name in ("embedding-000002", "attention-000001"):
        shutil.copytree(source, interrupted / RUN / "checkpoints" / name)
    (run,) = cli("status", interrupted, "--json").document["runs"]
    assert run["checkpoints"] == ["embedding-000002", "attention-000001", "attention-000004", "attention-000005"]
    assert "checkpoint attention-000005" in " ".join(cli("status", interrupted).out.split())


@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["cut short", "deleted"])
def test_the_state_file_is_rebuilt(cli: Cli, interrupted: Path, damage: Callable[[Path], None]) -> None:
    damage(interrupted / "state.json")
    assert cli("status", interrupted, "--json").document["runs"][0]["status"] == "unfinished"
    if damage is truncate:
        done = cli("train", interrupted, *ATTENTION)
        assert done.named("start")[0]["resumed_from"] == "attention 5"


def test_finished_runs_stay_finished_without_the_state_file(cli: Cli, project: Path) -> None:
    for seed in (1, 2):
        assert cli("train", project, *EMBEDDING, "--seed", seed, "--restart").code == 0
    before = weights(project)
    (project / "state.json").unlink()
    done = cli("train", project, *EMBEDDING, "--seed", 2)
    assert (done.code, "nothing to do" in done.out) == (0, True)
    assert "attnbooth generate" in cli("status", project).out.splitlines()[-1]
    assert weights(project) == before


@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["cut short", "deleted"])
def test_a_run_without_its_plan_can_only_be_begun_anew(
    cli: Cli, interrupted: Path, damage: Callable[[Path], None]
) -> None:
    damage(interrupted / RUN / "plan.json")
    for command in (("resume", interrupted), ("train", interrupted, *SHORT)):
        done = cli(*command)
        assert done.code == 5
        assert "plan.json" in done.err
        assert f"attnbooth train {interrupted} --restart" in done.err.splitlines()[-1]
    assert cli("train", interrupted, *EMBEDDING, "--restart").code == 0


@pytest.mark.parametrize(
    "name",
    [
        "learned_embeds.safetensors",
        "stages/attention.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_damaged_concept_is_refused(cli: Cli, trained: Path, name: str) -> None:
    path = trained / "concept" / name
    flip_byte(path)
    before = snapshot(trained)
    for command in (("generate", trained, "a {}"), ("eval", trained), ("inspect-attn", trained, "a {}")):
        done = cli(*command)
        assert done.code == 5
        assert str(path) in done.err
        assert f"attnbooth resume {trained}" in done.err.splitlines()[-1]
    assert snapshot(trained) == before
    path.unlink()
    assert cli("generate", trained, "a {}").code == 5


def test_a_concept_without_its_card(cli: Cli, trained: Path) -> None:
    truncate(trained / "concept" / "concept.json")
    done = cli("generate", trained, "a {}")
    assert done.code == 5
    assert "concept.json" in done.err


def test_an_embedding_of_another_width_is_named_as_that(cli: Cli, trained: Path) -> None:
    """Users complain of size mismatches from deep inside a library when an embedding is for another base model."""
    path, card = trained / "concept" / "learned_embeds.safetensors", trained / "concept" / "concept.json"
    save_file({"<toadstool>": torch.zeros(1, 768)}, path)
    document = json.loads(card.read_text())
    document["files"][path.name] = {
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    card.write_text(json.dumps(document))
    done = cli("generate", trained, "a {}")
    assert done.code == 5
    assert "[1, 768]" in done.err
    assert "needs width 128" in done.err


@pytest.mark.parametrize("name", ["state.json", "concept/concept.json"])
def test_what_a_newer_version_wrote_is_left_alone(cli: Cli, trained: Path, name: str) -> None:
    path = trained / name
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    before = snapshot(trained)
    command = ("train", trained, *SHORT) if name == "state.json" else ("generate", trained, "a {}")
    done = cli(*command)
    assert done.code == 2
    assert name in done.err
    assert "upgrade" in done.err
    assert snapshot(trained) == before


@pytest.mark.parametrize("change", ["deleted", "changed"])
def test_a_run_goes_on_only_with_its_own_pictures(cli: Cli, interrupted: Path, change: str) -> None:
    picture, other, *_ = sorted((interrupted / "images").iterdir())
    if change == "deleted":
        picture.unlink()
    else:
        shutil.copy(other, picture)
    done = cli("resume", interrupted)
    assert done.code == 2
    assert str(picture) in done.err
    assert "--restart" in done.err.splitlines()[-1]


def test_a_run_goes_on_only_with_its_own_base_model(cli: Cli, interrupted: Path) -> None:
    """A mirror may hold other weights under the same name: the run knows the hash of those it was begun with."""
    plan = interrupted / RUN / "plan.json"
    document = json.loads(plan.read_text())
    document["plan"]["base"]["sha256"] = "0" * 64
    plan.write_text(json.dumps(document))
    done = cli("resume", interrupted)
    assert done.code == 7
    assert "other weights" in done.err
    assert "--restart" in done.err


@pytest.mark.parametrize("changed", ["text_encoder/model.safetensors", "scheduler/scheduler_config.json"])
def test_a_run_goes_on_only_with_every_file_of_its_base_model(cli: Cli, tmp_path: Path, changed: str) -> None:
    base = Path(shutil.copytree(EXAMPLE.parent / "tiny", tmp_path / "base"))
    root = tmp_path / "felix"
    init = ("init", root, "--images", pictures(tmp_path / "in"), "--category", "cat", "--model", base, "-q")
    assert cli(*init).code == 0
    assert cli("train", root, *SHORT, "--until", "embedding", "-q").code == 0
    path = base / changed
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        flip_byte(path)
    for command in (("resume", root), ("train", root, *SHORT)):
        done = cli(*command)
        assert done.code == 7
        assert changed in done.err
        assert "--restart" in done.err


@pytest.mark.parametrize("change", ["another shape", "missing", "whole numbers"])
def test_moments_that_do_not_fit_are_refused(cli: Cli, interrupted: Path, change: str) -> None:
    """The fused optimizer looks at no shapes, and would write beyond what is too small."""
    shutil.rmtree(interrupted / RUN / "checkpoints" / "attention-000004")
    folder = interrupted / RUN / "checkpoints" / "attention-000005"
    path = folder / "optimizer.safetensors"
    moments = load_file(path)
    name = next(name for name in moments if name.startswith("exp_avg_sq/"))
    if change == "missing":
        del moments[name]
    else:
        moments[name] = torch.zeros(1) if change == "another shape" else moments[name].long()
    save_file(moments, path)
    document = json.loads((folder / "checkpoint.json").read_text())
    document["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(document))
    done = cli("resume", interrupted)
    assert done.code == 5
    assert str(path) in done.err


# --- no room, no permission -------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets so many more files reach the disk, and then none."""

    def fill(after: int) -> None:
        original, calls = os.fsync, iter(range(10**9))

        def fsync(descriptor: int) -> None:
            if next(calls) >= after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return fill


@pytest.mark.parametrize("files", [0, 3, 11])
def test_init_on_a_full_disk_leaves_no_project(
    cli: Cli, tmp_path: Path, full_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    root = tmp_path / "felix"
    full_disk(files)
    done = cli("init", root, "--images", pictures(tmp_path / "in"), "--category", "cat", "--model", "tiny")
    assert done.code == 6
    assert "the disk is full" in done.err
    assert not (root / "attnbooth.toml").exists()
    assert leftovers(root) == []
    monkeypatch.undo()
    assert cli("init", root, "--images", tmp_path / "in", "--category", "cat", "--model", "tiny").code == 0
    assert snapshot(root / "images") == snapshot(tmp_path / "in")


@pytest.mark.parametrize("files", [0, 14])
def test_training_on_a_full_disk_keeps_what_was_there(
    cli: Cli, project: Path, full_disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    flags = (*EMBEDDING, "--set=train.embedding.steps=4", "--set=train.checkpoint_every=1", "--json")
    full_disk(files)
    done = cli("train", project, *flags)
    assert done.code == 6
    (error,) = done.named("error")
    assert "the disk is full" in error["message"]
    assert "free some space" in error["hint"]
    assert leftovers(project) == []
    monkeypatch.undo()
    again = cli("train", project, *flags)
    assert again.code == 0
    saved = done.named("checkpoint")
    if saved and not again.named("done")[0]["nothing_to_do"]:
        assert len(again.named("step")) <= 4 - saved[-1]["step"]


def test_generating_on_a_full_disk(cli: Cli, trained: Path, full_disk: Callable[[int], None], tmp_path: Path) -> None:
    full_disk(4)
    done = cli("generate", trained, "a {}", "-n", 3, "--steps", 1, "--out", tmp_path / "out")
    assert done.code == 6
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert leftovers(tmp_path) == []


def test_a_disk_that_is_too_small_is_refused_with_numbers_before_the_work(cli: Cli, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=8m") as disk:
        root = example_project(disk / "toadstool")
        done = cli("train", root, "--smoke", "--json")
        assert done.code == 6
        (error,) = done.named("error")
        assert "GB are free" in error["message"]
        assert [event["event"] for event in done.events] == ["error"]


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_once: Path
) -> None:
    from attnbooth_cli.project import durable

    flags = (*SHORT, "--set=train.checkpoint_every=4", "--until", "attention", "--json")
    with mounted(tmp_path / "disk", "size=3m") as disk:
        root = example_project(disk / "toadstool")
        monkeypatch.setattr(durable, "require_free_space", lambda *_: None)
        done = cli("train", root, *flags)
        assert done.code == 6
        assert "the disk is full" in done.named("error")[0]["message"]
        assert leftovers(root) == []
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        again = cli("train", root, *flags)
        assert again.code == 0
        assert again.named("start")[0]["stages"] == [["attention", 8]]  # the first stage was saved
        assert after_attention(root) == after_attention(trained_once)


def test_a_project_that_cannot_be_written(cli: Cli, trained: Path, tmp_path: Path) -> None:
    with read_only(trained):
        for command in (
            ("train", trained, "--smoke"),
            ("resume", trained),
            ("generate", trained, "a {}", "--steps", 1),
            ("init", trained, "--example", "--force"),
        ):
            done = cli(*command)
            assert done.code == 6, command
            assert str(trained) in done.err
        assert cli("status", trained).code == 0
        assert cli("train", trained, "--dry-run").code == 0
        assert cli("generate", trained, "a {}", "--steps", 1, "--out", tmp_path / "out").code == 0


# --- divergence -------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_stops_and_keeps_the_last_good_state(cli: Cli, trained: Path) -> None:
    """Users complain of losses that become NaN and pictures that come out black, hours after it went wrong."""
    before = snapshot(trained / "concept")
    flags = (*SHORT, "--restart", "--set=train.unet.learning_rate=1e20", "--set=train.unet.steps=5", "--json")
    done = cli("train", trained, *flags)
    assert done.code == 8
    (error,) = done.named("error")
    assert "no longer finite" in error["message"]
    assert "stage unet" in error["message"]
    assert "lower train.unet.learning_rate" in error["hint"]
    assert error["run"] == "002-attndreambooth"
    assert snapshot(trained / "concept") == before
    assert leftovers(trained) == []
    for stage in ("embedding", "attention"):
        place = trained / "runs" / "002-attndreambooth" / "stages" / stage / "checkpoint.json"
        assert json.loads(place.read_text())["stage"] == stage
    assert cli("resume", trained).code in (2, 8)  # there is no way on, and that is no success
    lower = cli("train", trained, *SHORT, "--set=train.unet.steps=1", "--json", "--until", "embedding", "--restart")
    assert lower.code == 0
    assert lower.named("start")[0]["resumed_from"] is None


@pytest.mark.parametrize(("often", "kept"), [("checkpoint_every", "checkpoints"), ("snapshot_every", "snapshots")])
def test_a_state_that_is_not_finite_is_never_kept(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch, often: str, kept: str
) -> None:
    """Where the losses of its step still were: the first that is spoiled is that of step 2."""
    from attnbooth_cli.engine import loop

    finite = loop._require_finite

    def spoiling(stage: Stage, step: int, losses: object, parameters: loop.Parameters) -> None:
        finite(stage, step, losses, parameters)
        if (stage.name, step) == ("attention", 2):
            next(iter(parameters.values())).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(loop, "_require_finite", spoiling)
    done = cli("train", project, *SHORT, f"--set=train.{often}=1", "--json")
    assert done.code == 8
    assert "a trained weight is no longer finite at step 2 of stage attention" in done.err
    names = [path.name for path in project.glob(f"runs/*/{kept}/*")]
    assert any(name.endswith("attention-000001") for name in names)
    assert not any(name.endswith("attention-000002") for name in names)


def test_a_gradient_that_is_not_finite_ends_the_run(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbooth_cli.engine import loop

    calls = 0

    def spoiled(parameters: loop.Parameters, accelerator: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second step of stage attention
            next(iter(parameters.values())).grad.view(-1)[0] = float("inf")

    monkeypatch.setattr(loop, "add_over_processes", spoiled)
    done = cli("train", project, *SHORT, "--set=train.checkpoint_every=1", "--json")
    assert done.code == 8
    assert "stage attention" in done.err
    (last,) = project.glob("runs/*/checkpoints/attention-000001")
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(last / "weights.safetensors").values())
