"""The example concepts are what `tools/render_example.py` draws, and fit to train on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from attnbooth_cli.project.pictures import survey, warnings_about

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "render_example.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def test_rendering_again_gives_the_files(script: ModuleType) -> None:
    rendered = script.render()
    files = {path.relative_to(script.FOLDER).as_posix(): path for path in script.FOLDER.rglob("*.png")}
    assert rendered.keys() == files.keys()
    for name, image in rendered.items():
        with Image.open(files[name]) as file:
            difference = np.abs(np.asarray(file, int) - np.asarray(image, int))
        # Another Pillow may round differently; it may not draw something else.
        assert difference.max() <= 2, name


@pytest.mark.parametrize("concept", ["mushroom", "cat"])
def test_each_concept_is_five_small_faultless_pictures(script: ModuleType, concept: str) -> None:
    found = survey([script.FOLDER / concept])
    assert len(found.pictures) == 5
    assert {(p.width, p.height, p.notes) for p in found.pictures} == {(128, 128, ())}
    assert all(p.path.stat().st_size < 20_000 for p in found.pictures)
    assert found.skipped == ()
    assert warnings_about(found, 64) == ()
