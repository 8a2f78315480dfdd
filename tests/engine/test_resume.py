"""A run that is stopped after any step and resumed ends with the bits of a run that never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attnbooth_cli.engine.base_models import bundled_folder
from attnbooth_cli.engine.families import ComponentPool
from attnbooth_cli.engine.initialisation import init
from attnbooth_cli.engine.preparation import TrainOptions
from attnbooth_cli.engine.training import resume, train
from attnbooth_cli.errors import BaseModelError, InputError, StoppedError
from attnbooth_cli.events import Checkpointed, Event, Started, Stepped
from attnbooth_cli.project.project import Project
from tests.engine.conftest import EXAMPLE

STEPS = 2
OPTIONS = TrainOptions(
    save_precision="float32",
    settings=(
        *(
            f"train.{stage}.{key}"
            for stage in ("embedding", "attention", "unet")
            for key in ("steps=2", "batch_size=2")
        ),
        "train.checkpoint_every=0",
    ),
)


def concept_tensors(root: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(root)}/{name}": tensor
        for path in sorted((root / "concept").rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def stopping_after(steps: int):
    """An event sink and a `should_stop` that ask to stop once `steps` steps were reported."""
    count = 0

    def emit(event: Event) -> None:
        nonlocal count
        count += isinstance(event, Stepped)

    return emit, lambda: 15 if count == steps else 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume") / "pristine"
    init(root, images=[EXAMPLE], category="cat", model="tiny")
    return root


@pytest.fixture(scope="module")
def uninterrupted(project: Path) -> dict[str, torch.Tensor]:
    root = project.parent / "uninterrupted"
    shutil.copytree(project, root)
    train(root, options=OPTIONS)
    return concept_tensors(root)


@pytest.mark.parametrize("steps", range(1, 3 * STEPS))
def test_stopped_after_any_step(
    project: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path, steps: int
) -> None:
    root = tmp_path / "run"
    shutil.copytree(project, root)
    emit, should_stop = stopping_after(steps)
    with pytest.raises(StoppedError) as stopped:
        train(root, options=OPTIONS, emit=emit, should_stop=should_stop)
    assert stopped.value.exit_code == 143
    assert not (root / "concept").exists()
    events: list[Event] = []
    resume(root, emit=events.append)
    redone = [event for event in events if isinstance(event, Stepped)]
    assert len(redone) == 3 * STEPS - steps  # nothing is computed twice
    resumed = concept_tensors(root)
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)


def test_train_again_continues_like_resume(
    project: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(project, root)
    emit, should_stop = stopping_after(3)
    with pytest.raises(StoppedError):
        train(root, options=OPTIONS, emit=emit, should_stop=should_stop)
    events: list[Event] = []
    train(root, options=OPTIONS, emit=events.append)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.resumed_from == "attention 1"
    resumed = concept_tensors(root)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_a_damaged_newest_checkpoint_is_skipped_for_the_one_before(
    project: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(project, root)
    emit, should_stop = stopping_after(3)
    options = TrainOptions(save_precision="float32", settings=(*OPTIONS.settings[:-1], "train.checkpoint_every=1"))
    with pytest.raises(StoppedError):
        train(root, options=options, emit=emit, should_stop=should_stop)
    (newest,) = (root / "runs").glob("*/checkpoints/attention-000001")
    weights = newest / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    events: list[Event] = []
    resume(root, emit=events.append)
    assert any("does not match" in getattr(event, "message", "") for event in events)
    resumed = concept_tensors(root)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_checkpoints_are_pruned_to_two_and_dropped_when_finished(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(project, root)
    present: list[set[str]] = []

    def look(event: Event) -> None:
        if isinstance(event, Checkpointed):
            present.append({path.name for path in root.glob("runs/*/checkpoints/*")})

    settings = ("train.embedding.steps=5", "train.checkpoint_every=1", "train.embedding.batch_size=1")
    train(root, options=TrainOptions(settings=settings), until="embedding", emit=look)
    assert present[3] == {"embedding-000003", "embedding-000004"}
    assert not list(root.glob("runs/*/checkpoints"))


def test_until_then_the_rest_is_the_same_as_all_at_once(
    project: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(project, root)
    for stage in ("embedding", "attention", None):
        train(root, options=OPTIONS, until=stage)  # type: ignore[arg-type]
    resumed = concept_tensors(root)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert len(list(Project(root).runs.iterdir())) == 1


def test_until_an_earlier_stage_keeps_what_a_later_one_has_saved(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(project, root)
    emit, should_stop = stopping_after(5)
    with pytest.raises(StoppedError):
        train(root, options=OPTIONS, emit=emit, should_stop=should_stop)
    train(root, options=OPTIONS, until="attention")
    assert [path.name for path in root.glob("runs/*/checkpoints/*")] == ["unet-000001"]
    events: list[Event] = []
    train(root, options=OPTIONS, emit=events.append)
    assert sum(isinstance(event, Stepped) for event in events) == 1


def test_projects_that_share_a_base_model_learn_what_they_learn_alone(
    project: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The base model is loaded once, and each project starts from its untouched weights."""
    pool = ComponentPool(keep=True)
    for name in ("first", "second"):
        shutil.copytree(project, tmp_path / name)
        train(tmp_path / name, options=OPTIONS, pool=pool)
    for name in ("first", "second"):
        shared = concept_tensors(tmp_path / name)
        assert all(torch.equal(shared[key], uninterrupted[key]) for key in uninterrupted)


def test_a_resumed_run_stops_where_it_was_asked_to(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(project, root)
    emit, should_stop = stopping_after(1)
    with pytest.raises(StoppedError):
        train(root, options=OPTIONS, until="embedding", emit=emit, should_stop=should_stop)
    events: list[Event] = []
    resume(root, emit=events.append)
    assert {event.stage for event in events if isinstance(event, Stepped)} == {"embedding"}


def test_an_edited_manifest_is_refused_by_name_and_nothing_is_touched(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "edited"
    shutil.copytree(project, root)
    emit, should_stop = stopping_after(1)
    with pytest.raises(StoppedError):
        train(root, emit=emit, should_stop=should_stop)
    manifest = root / "attnbooth.toml"
    begun, before = manifest.read_text(), {path: path.read_bytes() for path in (root / "runs").rglob("*.json")}
    manifest.write_text(begun + "\n[train.unet]\nsteps = 3\n")
    with pytest.raises(InputError, match=r"train\.unet\.steps: 500 -> 3"):
        resume(root)
    assert before == {path: path.read_bytes() for path in (root / "runs").rglob("*.json")}


def test_a_base_model_may_have_moved(project: Path, tmp_path: Path) -> None:
    """To where the manifest says; another model there is refused."""
    root, first, second = tmp_path / "moved", tmp_path / "first", tmp_path / "second"
    shutil.copytree(project, root)
    shutil.copytree(bundled_folder(), first)
    manifest = root / "attnbooth.toml"
    manifest.write_text(manifest.read_text().replace('model = "tiny"', f'model = "{first}"'))
    emit, should_stop = stopping_after(1)
    with pytest.raises(StoppedError):
        train(root, options=OPTIONS, emit=emit, should_stop=should_stop)
    first.rename(second)
    manifest.write_text(manifest.read_text().replace(str(first), str(second)))
    weights = second / "unet" / "diffusion_pytorch_model.safetensors"
    held = weights.read_bytes()
    weights.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(BaseModelError, match="other weights"):
        resume(root)
    weights.write_bytes(held)
    resume(root)
    assert (root / "concept" / "concept.json").exists()
