"""Snapshots of a training, `eval --checkpoints` and `take`."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from tests.conftest import SHORT, Cli, example_project, flip_byte, snapshot, weights

pytestmark = pytest.mark.usefixtures("few_steps")
MOMENTS = [
    "embedding-000002", "attention-000003", "attention-000006", "attention-000008", "unet-000002",
]  # fmt: skip


@pytest.fixture(scope="module")
def kept_once(engine_loaded: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained project's run again, with a snapshot every three steps. Read only."""
    from attnbooth_cli.cli.app import run

    root = example_project(tmp_path_factory.mktemp("kept") / "toadstool")
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["train", str(root), *SHORT, "--snapshot-every", "3", "-q"]) == 0
    return root


@pytest.fixture
def kept(kept_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept_once, tmp_path / "kept" / "toadstool"))


def test_snapshots_do_not_change_what_is_learned(kept: Path, trained: Path) -> None:
    assert weights(kept) == weights(trained)
    places = sorted(path.name for path in (kept / "runs" / "001-attndreambooth" / "snapshots").iterdir())
    assert places == ["attention-000003", "attention-000006"]


def test_a_snapshot_is_what_training_to_that_step_gives(cli: Cli, kept: Path, tmp_path: Path) -> None:
    shorter = example_project(tmp_path / "other" / "toadstool")
    flags = [flag.replace("attention.steps=8", "attention.steps=6") for flag in SHORT]
    assert cli("train", shorter, *flags, "--until", "attention", "-q").code == 0
    taken = kept / "runs" / "001-attndreambooth" / "snapshots" / "attention-000006"
    assert {name: data for name, data in snapshot(taken).items() if name != "concept.json"} == weights(shorter)


def test_snapshots_may_be_asked_for_when_a_run_is_continued(cli: Cli, interrupted: Path, kept: Path) -> None:
    """The setting is no part of what is learned, so the run goes on, and from here on keeps them."""
    assert cli("train", interrupted, *SHORT, "--snapshot-every", 3, "-q").code == 0
    assert weights(interrupted) == weights(kept)
    document = cli("status", interrupted, "--json").document
    assert document["runs"][0]["snapshots"] == ["attention-000006"]  # it was interrupted at 5
    theirs, ours = (
        root / "runs" / "001-attndreambooth" / "snapshots" / "attention-000006" for root in (kept, interrupted)
    )
    assert weights_in(theirs) == weights_in(ours)


def weights_in(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(folder).items() if name.endswith(".safetensors")}


def test_scores_over_training(cli: Cli, kept: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {} on the beach")
    flags = ("--prompts", prompts, "-n", 1, "--checkpoints")
    document = cli("eval", kept, *flags, "--json").document
    over_training = document["over_training"]
    rows = over_training["moments"]
    assert over_training["current"] == "unet-000002"
    assert Path(over_training["report"]).is_file()
    assert [row["name"] for row in rows] == MOMENTS
    assert rows[0]["overall"]["drift"]["mean"] == pytest.approx(0, abs=1e-6)
    assert len({row["identity"] for row in rows}) == len(rows)
    assert document["identity"] == rows[-1]["identity"]
    alone = cli("eval", kept, "--prompts", prompts, "-n", 1, "--json").document
    assert alone["made"] == 0
    assert (alone["identity"], alone["text"]) == (document["identity"], document["text"])
    stage = cli("eval", kept, "--prompts", prompts, "-n", 1, "--stage", "attention", "--json").document
    assert stage["identity"] == pytest.approx(rows[3]["identity"], abs=1e-6)
    assert Path(over_training["plot"]).read_bytes().startswith(b"\x89PNG")
    shown = cli("eval", kept, *flags).out.splitlines()
    (line,) = (line for line in shown if "<- concept/" in line)
    assert line.startswith("unet-000002")


def test_an_earlier_moment_is_taken_and_given_back(cli: Cli, kept: Path) -> None:
    before = weights(kept)
    done = cli("take", kept, "attention-6", "--json")
    assert done.code == 0
    assert (done.document["moment"], done.document["before"]) == ("attention-000006", "unet-000002")
    taken = weights(kept)
    assert sorted(taken) == ["learned_embeds.safetensors", "stages/attention.safetensors"]
    assert cli("generate", kept, "a {} on the beach", "--steps", 2).code == 0
    refused = cli("generate", kept, "a {} on the beach", "--stage", "unet")
    assert (refused.code, "no stage unet" in refused.err) == (2, True)
    assert "nothing to do" in cli("train", kept, *SHORT).out  # the run is as finished as it was
    assert "nothing to do" in cli("take", kept, "attention-000006").out
    back = cli("take", kept, "unet-000002")
    assert back.code == 0
    assert f"attnbooth take {kept} attention-000006" in back.out
    assert weights(kept) == before


def test_a_stages_end_is_taken_where_there_are_no_snapshots(cli: Cli, trained: Path) -> None:
    assert cli("take", trained, "embedding-000002").code == 0
    assert sorted(weights(trained)) == ["learned_embeds.safetensors"]
    assert cli("take", trained, "attention-8").code == 0
    assert cli("status", trained, "--json").document["concept"]["stages"] == ["embedding", "attention"]


def test_what_cannot_be_taken(cli: Cli, kept: Path, project: Path) -> None:
    before = snapshot(kept)
    done = cli("take", kept, "unet-000001")
    assert done.code == 2
    assert done.err.splitlines()[-1] == f"hint: there are: {', '.join(MOMENTS)}"
    for odd in ("..", "unet", "unet-", "unet--1", "../concept", "unet-x"):
        assert cli("take", kept, odd).code == 2, odd
    assert cli("take", project, "unet-000002").code == 2  # nothing trained
    assert snapshot(kept) == before
    snapshots = kept / "runs" / "001-attndreambooth" / "snapshots"
    flip_byte(snapshots / "attention-000003" / "learned_embeds.safetensors")
    damaged = cli("take", kept, "attention-000003")
    assert damaged.code == 5
    assert damaged.err.splitlines()[-1].endswith(f"or delete {snapshots / 'attention-000003'}")
    assert weights(kept) == {name: before[f"concept/{name}"] for name in weights(kept)}


def test_a_damaged_concept_is_replaced_by_a_whole_snapshot(cli: Cli, kept: Path) -> None:
    flip_byte(kept / "concept" / "learned_embeds.safetensors")
    assert cli("take", kept, "attention-000006").code == 0
    assert cli("generate", kept, "a {}", "--steps", 2).code == 0
    (kept / "concept" / "concept.json").write_text("{")
    assert cli("take", kept, "attention-000003").code == 0
    assert cli("status", kept, "--json").document["concept"]["step"] == 3


def test_an_unreadable_snapshot_is_no_hindrance(cli: Cli, kept: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {} on the beach")
    (kept / "runs" / "001-attndreambooth" / "snapshots" / "attention-000003" / "concept.json").unlink()
    done = cli("eval", kept, "--prompts", prompts, "-n", 1, "--no-drift", "--checkpoints", "--json")
    assert [row["name"] for row in done.document["over_training"]["moments"]] == [
        name for name in MOMENTS if name != "attention-000003"
    ]
    assert "note: skipped: " in done.err
    assert cli("take", kept, "attention-000006").code == 0


def test_a_snapshot_with_damaged_weights_is_no_hindrance(cli: Cli, kept: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {} on the beach")
    snapshot_of = kept / "runs" / "001-attndreambooth" / "snapshots" / "attention-000003"
    flip_byte(max(snapshot_of.rglob("*.safetensors"), key=lambda path: path.stat().st_size))
    done = cli("eval", kept, "--prompts", prompts, "-n", 1, "--no-drift", "--checkpoints", "--json")
    assert done.code == 0
    assert [row["name"] for row in done.document["over_training"]["moments"]] == [
        name for name in MOMENTS if name != "attention-000003"
    ]
    assert "note: skipped: " in done.err


def test_snapshots_of_a_run_that_diverged(cli: Cli, project: Path, tmp_path: Path) -> None:
    """When they are wanted most: the run has no concept, and its snapshots are scored and taken all the same."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a {} on the beach")
    diverging = ("--set=train.unet.learning_rate=1e20", "--set=train.unet.steps=4")
    assert cli("train", project, *SHORT, *diverging, "--snapshot-every", 4, "-q").code == 8
    done = cli("eval", project, "--prompts", prompts, "-n", 1, "--no-drift", "--checkpoints", "--json")
    assert done.code == 0
    assert done.document["over_training"]["current"] is None
    gated = cli("eval", project, "--prompts", prompts, "-n", 1, "--no-drift", "--checkpoints", "--min-identity", -1)
    assert gated.code == 3
    assert "no concept/" in gated.err
    names = [row["name"] for row in done.document["over_training"]["moments"]]
    assert names == ["embedding-000002", "attention-000004"]
    taken = cli("take", project, "attention-4")
    assert taken.code == 0
    assert "it was at" not in taken.out
    assert cli("generate", project, "a {}", "--steps", 2).code == 0


def test_a_lost_index_remembers_what_a_taken_concept_does_not_hold(cli: Cli, kept: Path) -> None:
    assert cli("take", kept, "attention-000006").code == 0
    (kept / "state.json").unlink()
    assert "nothing to do" in cli("resume", kept).out
