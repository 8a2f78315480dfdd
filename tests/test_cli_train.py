"""`attnbooth train` and `resume`: from a project or a bare folder to a concept, and what happens the second time."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from attnbooth_cli.cli import signals
from attnbooth_cli.engine.base_models import bundled_folder
from tests.conftest import SAMPLING_STEPS, SHORT, Cli, example_project, leftovers, pictures, snapshot, weights

EMBEDDING = ("--until", "embedding", "--set=train.embedding.steps=2", "--set=train.embedding.batch_size=1")
"""The shortest real run."""


def state(project: Path) -> dict[str, Any]:
    document = json.loads((project / "state.json").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def card(project: Path) -> dict[str, Any]:
    document = json.loads((project / "concept" / "concept.json").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def steps(project: Path, run: str) -> list[tuple[str, int]]:
    lines = (project / "runs" / run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return [(event["stage"], event["step"]) for event in events if event["event"] == "step"]


# --- a bare folder ----------------------------------------------------------------------------------------------------


def test_a_bare_folder_becomes_a_project_and_its_originals_stay(cli: Cli, tmp_path: Path) -> None:
    root = pictures(tmp_path / "my_cat")
    (root / "notes.txt").write_text("mine")
    before = snapshot(root)
    done = cli("train", root, "--model", "tiny", *EMBEDDING)
    assert done.code == 0
    assert "pictures of a cat (from the folder's name" in done.err
    manifest = tomllib.loads((root / "attnbooth.toml").read_text(encoding="utf-8"))
    assert manifest["concept"] == {"name": "my_cat", "category": "cat", "token": "<my-cat>", "images": "images"}
    after = snapshot(root)
    assert after.items() >= before.items()
    assert {name: after[f"images/{name}"] for name in before if name.endswith(".png")}.items() < before.items()
    assert (root / "concept" / "learned_embeds.safetensors").is_file()


def test_a_bare_folder_takes_the_flags_of_init(cli: Cli, tmp_path: Path) -> None:
    root = pictures(tmp_path / "IMG_1")
    flags = ("--category", "cat", "--token", "<felix>", "--model", "tiny", "--resolution", 32)
    assert cli("train", root, *flags, *EMBEDDING).code == 0
    manifest = tomllib.loads((root / "attnbooth.toml").read_text(encoding="utf-8"))
    assert (manifest["concept"]["category"], manifest["concept"]["token"]) == ("cat", "<felix>")
    assert manifest["train"] == {"resolution": 32}
    with Image.open(root / "samples" / "001-attndreambooth-embedding.png") as sample:
        assert sample.size == (32, 32)
    again = cli("train", root, *flags, *EMBEDDING)
    assert (again.code, "nothing to do" in again.out) == (0, True)


@pytest.mark.parametrize(
    ("flag", "value"), [("--category", "dog"), ("--token", "<other>"), ("--model", "x/y"), ("--resolution", "128")]
)
def test_a_flag_that_contradicts_the_manifest_is_refused(cli: Cli, project: Path, flag: str, value: str) -> None:
    before = snapshot(project)
    for more in ([], ["--dry-run"]):
        done = cli("train", project, flag, value, *more)
        assert done.code == 2
        assert f"{flag} {value} contradicts" in done.err
    assert snapshot(project) == before


def test_a_bare_folder_without_a_category_is_refused_untouched(cli: Cli, tmp_path: Path) -> None:
    root = pictures(tmp_path / "DCIM")
    before = snapshot(root)
    done = cli("train", root, "--model", "tiny")
    assert done.code == 2
    assert "--category" in done.err
    assert snapshot(root) == before


@pytest.mark.parametrize("command", ["train", "resume"])
def test_a_folder_that_is_not_there(cli: Cli, tmp_path: Path, command: str) -> None:
    done = cli(command, tmp_path / "absent")
    assert done.code == 2
    assert "there is no folder" in done.err
    assert not (tmp_path / "absent").exists()
    (tmp_path / "file").touch()
    assert "is a file, and a project is a folder" in cli(command, tmp_path / "file").err


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_the_result(trained: Path) -> None:
    document = card(trained)
    assert document["stages"] == ["embedding", "attention", "unet"]
    assert document["token"] == "<toadstool>"
    assert document["smoke"] is False
    assert set(document["files"]) == {
        "learned_embeds.safetensors",
        "stages/attention.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    run = document["run"]
    assert state(trained)["concept_run"] == run
    assert sorted(path.name for path in (trained / "samples").iterdir()) == [
        f"{run}-{stage}.png" for stage in ("attention", "embedding", "unet")
    ]
    plan = json.loads((trained / "runs" / run / "plan.json").read_text(encoding="utf-8"))
    assert plan["digest"] == document["digest"]
    assert leftovers(trained) == []


def test_the_manifest_and_the_pictures_are_never_written_by_a_run(trained_once: Path, project: Path) -> None:
    for name, data in snapshot(project).items():
        assert (trained_once / name).read_bytes() == data


def test_the_embedding_is_one_safetensors_key_of_the_base_models_width(trained: Path) -> None:
    """Users complain that an embedding does not load elsewhere, loads and does nothing, or has another width."""
    with safe_open(trained / "concept" / "learned_embeds.safetensors", "pt") as file:
        assert list(file.keys()) == ["<toadstool>"]
        assert file.metadata() == {"format": "pt"}
        rows = file.get_tensor("<toadstool>")
    assert rows.shape == (1, 128)


def test_samples_of_training_show_the_concept_as_generate_does(cli: Cli, trained: Path) -> None:
    """Users complain that the pictures made while training do not show the concept: another code path made them."""
    quick = ("--steps", SAMPLING_STEPS)
    for stage in ("embedding", "attention", "unet"):
        done = cli("generate", trained, "a photo of a {} on the beach", "--stage", stage, "--json", *quick)
        (picture,) = done.document["pictures"]
        with (
            Image.open(picture["path"]) as generated,
            Image.open(trained / "samples" / f"001-attndreambooth-{stage}.png") as sample,
        ):
            assert generated.tobytes() == sample.tobytes(), stage


def test_says_what_will_happen_before_it_starts_and_where_things_are_after(
    cli: Cli, trial_step: None, project: Path
) -> None:
    done = cli("train", project, *EMBEDDING)
    before, _, after = done.err.partition("embedding 1/2")
    assert "learning <toadstool> (mushroom) from 5 pictures" in before
    assert "stages: embedding (2 steps)" in before
    assert "from a trial step" in before
    assert "diffusion 0." in after
    lines = done.out.splitlines()
    assert lines[0].startswith("done in ")
    assert lines[1] == f"concept: {project / 'concept'}"
    assert lines[-1].split(maxsplit=1)[1].startswith(f"attnbooth generate {project} ")


def test_the_pictures_asked_for_on_the_way(cli: Cli, project: Path) -> None:
    flags = ("--set=train.embedding.steps=3", "--set=train.embedding.batch_size=1", "--until", "embedding")
    assert cli("train", project, *flags, "--sample-every", 2).code == 0
    names = sorted(path.name for path in (project / "samples").iterdir())
    assert names == ["001-attndreambooth-embedding-000002.png", "001-attndreambooth-embedding.png"]


def test_a_stage_can_be_left_out(cli: Cli, project: Path) -> None:
    flags = ("--set=train.attention.enabled=false", "--set=train.unet.enabled=false")
    assert cli("train", project, *EMBEDDING[2:], *flags).code == 0
    assert card(project)["stages"] == ["embedding"]


# --- the second time --------------------------------------------------------------------------------------------------


def test_a_finished_project_has_nothing_to_do(cli: Cli, trained: Path) -> None:
    before = snapshot(trained)
    for command in (("train", trained, *SHORT), ("resume", trained)):
        done = cli(*command)
        assert done.code == 0
        assert "nothing to do" in done.out
        assert f"attnbooth train {trained} --restart" in done.out
    assert snapshot(trained) == before


def test_resume_without_a_run(cli: Cli, project: Path) -> None:
    done = cli("resume", project)
    assert done.code == 2
    assert f"hint: attnbooth train {project}" in done.err


def test_until_stops_after_a_stage_and_the_next_train_goes_on(cli: Cli, project: Path, trained_once: Path) -> None:
    first = cli("train", project, *SHORT, "--until", "embedding")
    assert first.code == 0
    assert card(project)["stages"] == ["embedding"]
    assert sorted(weights(project)) == ["learned_embeds.safetensors"]
    assert cli("train", project, *SHORT, "--until", "embedding").out.startswith("nothing to do")
    done = cli("train", project, *SHORT, "--json")
    assert done.code == 0
    assert done.named("start")[0]["stages"] == [["attention", 8], ["unet", 2]]
    assert [run["name"] for run in state(project)["runs"]] == ["001-attndreambooth"]
    assert weights(project) == weights(trained_once)


def test_resume_continues_to_the_same_bits(cli: Cli, interrupted: Path, trained_once: Path) -> None:
    """Users complain that resuming starts the steps anew, forgets what was learned, or mixes up file names."""
    run = "001-attndreambooth"
    assert steps(interrupted, run)[-1] == ("attention", 5)
    done = cli("resume", interrupted, "--json")
    assert done.code == 0
    assert done.named("start")[0]["resumed_from"] == "attention 5"
    assert steps(interrupted, run) == steps(trained_once, run)
    assert weights(interrupted) == weights(trained_once)
    assert snapshot(interrupted / "samples") == snapshot(trained_once / "samples")
    assert [entry["status"] for entry in state(interrupted)["runs"]] == ["done"]


def test_other_settings_are_refused_by_name_while_a_run_is_unfinished(cli: Cli, interrupted: Path) -> None:
    before = snapshot(interrupted)
    done = cli("train", interrupted, *SHORT, "--seed", 3)
    assert done.code == 2
    assert "seed: 0 -> 3" in done.err
    hint = done.err.splitlines()[-1]
    assert f"attnbooth resume {interrupted}" in hint
    assert f"attnbooth train {interrupted} --restart" in hint
    assert snapshot(interrupted) == before


def test_settings_that_do_not_change_the_result_may_change(cli: Cli, interrupted: Path) -> None:
    done = cli("train", interrupted, *SHORT, "--set=train.checkpoint_every=3", "--json", "--until", "attention")
    assert done.code == 0
    assert [event["step"] for event in done.named("checkpoint")] == [6, 8]
    assert done.named("start")[0]["resumed_from"] == "attention 5"


def test_restart_begins_anew_and_keeps_the_old_run(cli: Cli, interrupted: Path) -> None:
    old = snapshot(interrupted / "runs")
    done = cli("train", interrupted, *EMBEDDING, "--restart", "--json")
    assert done.code == 0
    assert done.named("step")[0]["step"] == 1
    assert {event["run"] for event in done.events} == {"002-attndreambooth"}
    assert snapshot(interrupted / "runs").items() >= old.items()
    assert card(interrupted)["run"] == "002-attndreambooth"
    # Nothing comes back to the run that was given up.
    concept = snapshot(interrupted / "concept")
    done = cli("train", interrupted, *EMBEDDING)
    assert (done.code, "nothing to do" in done.out) == (0, True)
    assert f"the rest (attention, unet): attnbooth resume {interrupted}" in done.out
    assert snapshot(interrupted / "concept") == concept
    assert state(interrupted)["concept_run"] == "002-attndreambooth"


def test_a_finished_concept_is_replaced_only_when_asked_to(cli: Cli, project: Path) -> None:
    """And `nothing to do` must mean that concept/ holds what these settings give, not that it once did."""
    assert cli("train", project, *EMBEDDING).code == 0
    first = weights(project)
    other = cli("train", project, *EMBEDDING, "--seed", 1)
    assert other.code == 2
    assert "trained already, with other settings (seed: 0 -> 1)" in other.err
    assert weights(project) == first
    assert cli("train", project, *EMBEDDING, "--seed", 1, "--restart").code == 0
    second = weights(project)
    assert second != first
    back = cli("train", project, *EMBEDDING)  # they were trained before, and would replace what is there all the same
    assert back.code == 2
    assert "trained already, with other settings (seed: 1 -> 0)" in back.err
    assert weights(project) == second
    assert cli("train", project, *EMBEDDING, "--restart").code == 0
    assert weights(project) == first


def test_a_deleted_concept_is_made_again(cli: Cli, project: Path) -> None:
    assert cli("train", project, *EMBEDDING).code == 0
    first = weights(project)
    shutil.rmtree(project / "concept")
    assert cli("generate", project, "a {}").code == 2
    assert cli("train", project, *EMBEDDING).code == 0
    assert weights(project) == first


def test_resume_goes_no_further_than_the_last_train_was_asked_to(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was done with a stage, was asked for the next one and stopped in it, is not done."""
    assert cli("train", project, *SHORT, "--until", "embedding", "-q").code == 0
    with monkeypatch.context() as stopping:
        stopping.setattr(signals, "stop_at_safe_points", lambda _: contextlib.nullcontext(lambda: signal.SIGINT))
        assert cli("train", project, *SHORT, "--until", "attention", "-q").code == 130
    assert cli("status", project, "--json").document["runs"][0]["status"] == "unfinished"
    done = cli("resume", project, "--json")
    assert done.code == 0
    assert {event["stage"] for event in done.named("step")} == {"attention"}


def test_a_stage_the_run_does_not_have_is_refused(cli: Cli, project: Path) -> None:
    for more in ((), ("--dry-run",)):
        done = cli("train", project, "--method", "dreambooth", "--until", "attention", *more)
        assert done.code == 2
        assert "nothing is trained until stage attention: this run has unet" in done.err
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("--category", " mushroom"), ("--resolution", "64"), ("--model", "tiny"), ("--model", "link")]
)
def test_saying_again_what_init_was_told_contradicts_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str
) -> None:
    """So that the command that made a project can be repeated as it is, a folder's relative path included."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(bundled_folder())
    model = value if flag == "--model" else "tiny"
    root = pictures(Path("mushroom"))
    assert cli("init", root, "--model", model).code == 0
    assert cli("train", root, flag, value, "--dry-run").code == 0


# --- smoke ------------------------------------------------------------------------------------------------------------


def test_a_smoke_test_is_marked_as_one(cli: Cli, project: Path, trained_once: Path) -> None:
    done = cli("train", project, "--smoke", "--json")
    assert done.code == 0
    assert done.named("start")[0]["smoke"] is True
    assert done.named("done")[0]["smoke"] is True
    assert [(event["stage"], event["step"]) for event in done.named("step")] == [
        (stage, step) for stage in ("embedding", "attention", "unet") for step in (1, 2)
    ]
    assert len(done.named("sample")) == 1
    assert card(project)["smoke"] is True
    made = cli("generate", project, "a {}", "--steps", 1)
    assert "smoke test" in made.err
    status = cli("status", project).out
    assert "smoke test's concept from run 001" in status
    assert status.splitlines()[-1] == f"next: attnbooth train {project}"
    # The saved U-Net is float16 unless asked.
    for root, dtype in ((project, "torch.float16"), (trained_once, "torch.float32")):
        with safe_open(root / "concept" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
            assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {dtype}  # noqa: SIM118


def test_a_smoke_test_does_not_replace_a_real_concept(cli: Cli, trained: Path) -> None:
    before = snapshot(trained / "concept")
    done = cli("train", trained, "--smoke", "--until", "embedding")
    assert done.code == 0
    assert "concept/ holds a real concept" in done.err
    assert "concept:" not in done.out
    assert "attnbooth generate" not in done.out
    assert not list(trained.glob("runs/*-smoke/checkpoints/*"))
    assert snapshot(trained / "concept") == before
    assert state(trained)["concept_run"] == "001-attndreambooth"


def test_a_smoke_test_tests_each_time_and_makes_one_picture(cli: Cli, project: Path) -> None:
    for number in (1, 2):
        done = cli("train", project, "--smoke", "--until", "embedding", "--json")
        assert done.code == 0
        assert [event["run"] for event in done.named("start")] == [f"00{number}-attndreambooth-smoke"]
        assert len(done.named("sample")) == 1


@pytest.mark.parametrize("beside", ["interrupted", "trained"])
def test_a_stopped_smoke_test_is_nobodys_business(
    cli: Cli, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    """Beside a real run, `resume` and `status` are about that one."""
    root: Path = request.getfixturevalue(beside)
    with monkeypatch.context() as stopping:
        stopping.setattr(signals, "stop_at_safe_points", lambda _: contextlib.nullcontext(lambda: signal.SIGINT))
        stopped = cli("train", root, "--smoke")
        assert (stopped.code, stopped.err.splitlines()[-1]) == (130, f"hint: attnbooth train {root} --smoke")
    status = cli("status", root).out.splitlines()[-1]
    if beside == "interrupted":
        assert status == f"next: attnbooth resume {root}"
        assert cli("resume", root, "--json").named("start")[0]["resumed_from"] == "attention 5"
    else:
        assert "attnbooth generate" in status
        assert "nothing to do" in cli("resume", root).out


def test_a_smoke_test_beside_an_unfinished_run(cli: Cli, interrupted: Path) -> None:
    assert cli("train", interrupted, "--smoke", "--until", "embedding").code == 0
    done = cli("train", interrupted, *SHORT, "--json", "--until", "attention")
    assert done.named("start")[0]["resumed_from"] == "attention 5"


# --- several projects -------------------------------------------------------------------------------------------------


def test_several_projects_share_a_base_model_and_none_changes_another(
    cli: Cli, tmp_path: Path, trained_once: Path
) -> None:
    one, two = example_project(tmp_path / "other"), example_project(tmp_path / "toadstool")
    done = cli("train", one, two, *SHORT, "--json")
    assert done.code == 0
    assert [event["project"] for event in done.named("done")] == [str(one), str(two)]
    assert weights(two) == weights(trained_once)
    assert weights(one) != weights(two)  # its token has another name


def test_a_project_that_fails_does_not_stop_the_others(cli: Cli, project: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    other = pictures(tmp_path / "cat")
    done = cli("train", absent, project, other, "--model", "tiny", *EMBEDDING, "--json")
    assert done.code == 2
    assert [(event["project"], event["exit_code"]) for event in done.named("error")] == [(str(absent), 2)]
    assert [event["project"] for event in done.named("done")] == [str(project), str(other)]


def test_the_first_failures_code_wins_unless_there_is_a_bug(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbooth_cli.engine import training
    from attnbooth_cli.errors import DamagedError, LockedError

    failures = {"a": DamagedError("a"), "b": LockedError("b"), "c": ZeroDivisionError("c")}

    def fail(root: Path, **_: object) -> None:
        raise failures[root.name]

    monkeypatch.setattr(training, "resume", fail)
    for name in failures:
        example_project(tmp_path / name)
    assert cli("resume", tmp_path / "a", tmp_path / "b").code == 5
    assert cli("resume", tmp_path / "b", tmp_path / "a").code == 4
    done = cli("resume", tmp_path / "a", tmp_path / "c")
    assert done.code == 1
    assert "unexpected ZeroDivisionError" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in cli("resume", tmp_path / "c", "-v").err


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_only_the_newest_two_checkpoints_are_kept(interrupted: Path) -> None:
    folder = interrupted / "runs" / "001-attndreambooth" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["attention-000004", "attention-000005"]


def test_the_end_of_a_stage_is_saved_whatever_the_interval(cli: Cli, project: Path) -> None:
    """Users complain that the last steps are lost when their number is no multiple of the checkpoint interval."""
    flags = (*EMBEDDING, "--set=train.embedding.steps=5", "--set=train.checkpoint_every=2", "--json")
    done = cli("train", project, *flags)
    saved = [(event["stage"], event["step"]) for event in done.named("checkpoint")]
    assert saved == [("embedding", 2), ("embedding", 4), ("embedding", 5)]
    end = Path(done.named("checkpoint")[-1]["path"])
    assert json.loads((end / "checkpoint.json").read_text())["step"] == 5
    with (
        safe_open(end / "weights.safetensors", "pt") as at_the_end,
        safe_open(project / "concept" / "learned_embeds.safetensors", "pt") as published,
    ):
        assert at_the_end.get_tensor("placeholder").equal(published.get_tensor("<toadstool>"))
