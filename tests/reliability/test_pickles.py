"""A pickle that would run code, at every place where a stranger's file may be loaded: nothing of it ever runs."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Cli
from tests.reliability.bad_inputs import ENCODER, MANIFEST, ONE_STEP, UNET, edited, model, safetensors
from tests.reliability.bad_inputs import project as new_project
from tests.reliability.strangers import EMBEDS, checkpoint, concept_file, edit_json, stage_result
from tests.reliability.test_bad_inputs import finished_once  # noqa: F401

SUFFIXES = (".bin", ".pt", ".ckpt", ".safetensors")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def plain(marker: Path) -> bytes:
    """A pickle."""
    return pickle.dumps({"weights": Payload(marker)})


def zipped(marker: Path) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save({"weights": Payload(marker)}, file)
    return file.getvalue()


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that must not be; and torch's own loader of pickles, safe or not, is never asked."""
    path = tmp_path / "marker"

    def load(*_: Any, **__: Any) -> None:
        path.touch()
        raise pickle.UnpicklingError

    monkeypatch.setattr(torch, "load", load)
    return path


@pytest.fixture(params=[plain, zipped], ids=["pickle", "torch.save"])
def payload(request: pytest.FixtureRequest, marker: Path) -> bytes:
    data: bytes = request.param(marker)
    return data


def test_the_payload_works(tmp_path: Path) -> None:
    for data in (plain(tmp_path / "a"), zipfile.ZipFile(io.BytesIO(zipped(tmp_path / "b"))).read("archive/data.pkl")):
        pickle.loads(data)
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


def trained_on(cli: Cli, place: Path, base: Path) -> int:
    root = new_project(place, MANIFEST.replace('"tiny"', json.dumps(str(base))))
    return cli("train", root, *ONE_STEP).code


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_in_a_base_model(cli: Cli, tmp_path: Path, marker: Path, payload: bytes, suffix: str) -> None:
    for number, weights in enumerate((UNET, ENCODER)):
        place = tmp_path / str(number)
        place.mkdir()
        pickled = weights.removesuffix(".safetensors") + suffix
        assert trained_on(cli, place, model(place, {weights: None, pickled: payload})) in (2, 5)
    assert not marker.exists()


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_behind_the_index_of_a_base_models_shards(
    cli: Cli, tmp_path: Path, marker: Path, payload: bytes, part: str
) -> None:
    index = json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": "evil.bin"}}).encode()
    changes = {
        f"{part}.safetensors": None,
        f"{part}.safetensors.index.json": index,
        f"{part}-00001-of-00001.safetensors": safetensors({}),
        f"{part.partition('/')[0]}/evil.bin": payload,
    }
    assert trained_on(cli, tmp_path, model(tmp_path, changes)) == 2
    assert not marker.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_as_a_single_file(cli: Cli, tmp_path: Path, marker: Path, payload: bytes, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(payload)
    assert trained_on(cli, tmp_path, path) == 2
    assert not marker.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_as_a_concept(
    cli: Cli,
    tmp_path: Path,
    finished_once: Path,  # noqa: F811
    marker: Path,
    payload: bytes,
    suffix: str,
) -> None:
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    name = EMBEDS.removesuffix(".safetensors") + suffix
    concept_file(name, payload)(root)
    if name != EMBEDS:
        (root / "concept" / EMBEDS).unlink()
        edit_json("concept/concept.json", lambda card: card["files"].pop(EMBEDS))(root)
    assert cli("generate", root, "a {}", "--steps=1").code == 5
    assert not marker.exists()


@pytest.mark.parametrize("place", ["checkpoint", "stage"])
def test_as_a_state_of_a_run(
    cli: Cli,
    tmp_path: Path,
    finished_once: Path,  # noqa: F811
    marker: Path,
    payload: bytes,
    place: str,
) -> None:
    root = Path(shutil.copytree(finished_once, tmp_path / "p"))
    if place == "stage":
        stage_result(payload)(root)
    else:
        checkpoint({"weights.safetensors": payload, "optimizer.safetensors": payload})(root)
    assert cli("resume", root).code == 5
    assert not marker.exists()


def test_code_beside_a_base_model_is_not_run(cli: Cli, tmp_path: Path, marker: Path) -> None:
    """A pipeline in the scheduler's place would be loaded with parts of its own."""
    program = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n".encode()
    inner = {"_class_name": "StableDiffusionPipeline", "scheduler": ["evil", "Evil"]}
    changes = {
        **edited("model_index.json", scheduler=["diffusers", "StableDiffusionPipeline"]),
        "scheduler/model_index.json": json.dumps(inner).encode(),
        "scheduler/scheduler/evil.py": program,
        "evil.py": program,
    }
    folder = model(tmp_path)
    (folder / "scheduler" / "scheduler").mkdir()
    for name, data in changes.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data or b"")
    assert trained_on(cli, tmp_path, folder) == 2
    assert not marker.exists()
