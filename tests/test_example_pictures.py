"""The example concepts, and the benchmark's, are fit to train on and are the recipe's held-out ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnbooth_cli.project.pictures import survey, warnings_about
from tools.tiny.concepts import Concept, held_out
from tools.tiny.truth import PROMPTS, REFERENCE_SCENES, REFERENCES

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "src" / "attnbooth_cli" / "assets" / "example"
BENCHMARK = ROOT / "benchmarks" / "concepts"


def images_of(concept: Concept) -> Path:
    if concept.split == "example":
        return EXAMPLE / concept.thing.noun
    return BENCHMARK / concept.split / concept.name / "images"


@pytest.mark.parametrize("concept", held_out(), ids=lambda concept: concept.name)
def test_each_concept_is_five_small_faultless_pictures(concept: Concept) -> None:
    found = survey([images_of(concept)])
    assert len(found.pictures) == REFERENCES
    assert {(p.width, p.height, p.notes) for p in found.pictures} == {(64, 64, ())}
    assert all(p.path.stat().st_size < 20_000 for p in found.pictures)
    assert found.skipped == ()
    assert warnings_about(found, 64) == ()
    scenes = {p.path.stem.split("-", 1)[1].replace("-", " ") for p in found.pictures}
    assert len(scenes) == REFERENCES
    assert scenes <= set(REFERENCE_SCENES)


def test_every_benchmark_concept_has_its_true_pictures() -> None:
    for concept in held_out():
        if concept.split != "example":
            truth = images_of(concept).parent / "truth"
            names = sorted(path.name for path in truth.iterdir())
            assert names == sorted(f"{k}.png" for k in range(1, len(PROMPTS) + 1))


def test_there_is_no_other_concept() -> None:
    folders = {*EXAMPLE.iterdir(), *BENCHMARK.glob("*/*")}
    assert folders == {
        images_of(concept) if concept.split == "example" else images_of(concept).parent for concept in held_out()
    }


def test_no_configuration_of_the_bundled_model_names_a_place_on_somebodys_disk() -> None:
    configurations = sorted((EXAMPLE.parent / "tiny").rglob("*.json"))
    assert len(configurations) >= 6
    for path in configurations:
        text = path.read_text("utf-8")
        assert "_name_or_path" not in text, path
        json.loads(text)
