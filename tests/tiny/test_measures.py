"""How the bundled model is measured: prompts, agreement, identity, ranking's parts, and the schedule's table."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tools.tiny import canvas, card, measure, schedule
from tools.tiny.concepts import held_out
from tools.tiny.dataset import ATTRIBUTES, COLOUR_NAMES, NOUN_NAMES, SCENE_NAMES, STYLE_NAMES, JudgeData
from tools.tiny.truth import REFERENCE_SCENES, depicted

from .test_world import wardrobe

assert wardrobe  # a fixture


def test_prompts_ask_for_every_noun_and_style_equally_often(wardrobe):
    drawn = measure.draw_prompts(0, wardrobe)
    assert len(drawn) == 504
    nouns = Counter(depiction.thing.noun for _, depiction in drawn)
    styles = Counter(depiction.style for _, depiction in drawn)
    assert set(nouns) == set(NOUN_NAMES)
    assert set(nouns.values()) == {21}
    assert set(styles) == set(STYLE_NAMES)
    assert max(styles.values()) - min(styles.values()) <= 24
    for prompt, depiction in drawn:
        assert depiction.thing.noun in prompt
        assert (depiction.thing.colour or "") in prompt
    assert drawn == measure.draw_prompts(0, wardrobe)
    assert drawn != measure.draw_prompts(1, wardrobe)


class Reader(torch.nn.Module):
    """A classifier that reads the right answer off a picture's first pixels, written there by the test."""

    labels = ATTRIBUTES

    def forward(self, pictures):
        codes = ((pictures[:, 0, 0, :4] + 1) * 127.5).round().long()  # [b, 4]
        return {
            name: torch.nn.functional.one_hot(codes[:, k].clamp(max=len(its) - 1), len(its))
            for k, (name, its) in enumerate(ATTRIBUTES.items())
        }


def test_agreement_counts_what_was_asked_for(wardrobe):
    depictions = [depiction for _, depiction in measure.draw_prompts(3, wardrobe, 96)]
    pictures = np.zeros((96, 64, 64, 3), np.uint8)
    for picture, depiction in zip(pictures, depictions, strict=True):
        picture[0, 0, 0] = NOUN_NAMES.index(depiction.thing.noun)
        picture[0, 1, 0] = COLOUR_NAMES.index(depiction.thing.colour or "red")
        picture[0, 2, 0] = SCENE_NAMES.index(depiction.scene)
        picture[0, 3, 0] = STYLE_NAMES.index(depiction.style)
    assert set(measure.agreement(Reader(), pictures, depictions).values()) == {1.0}
    wrong = pictures.copy()
    wrong[:24, 0, 0, 0] = (wrong[:24, 0, 0, 0] + 1) % len(NOUN_NAMES)
    wrong[12:36, 0, 2, 0] = (wrong[12:36, 0, 2, 0] + 1) % len(SCENE_NAMES)
    seen = measure.agreement(Reader(), wrong, depictions)
    assert (seen["object"], seen["scene"], seen["style"]) == (0.75, 0.75, 1.0)
    assert seen["all three"] == 1 - 36 / 96


def test_identity_leaves_out_a_picture_against_itself():
    first = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    groups = [first[:3], first[3:]]
    by_hand = [float(a @ b) for group in groups for i, a in enumerate(group) for j, b in enumerate(group) if i != j]
    assert abs(measure._identity(first, first, 3) - np.mean(by_hand)) < 1e-6
    same = torch.nn.functional.normalize(torch.ones(6, 4), dim=-1)
    assert abs(measure._identity(same, same, 3) - 1) < 1e-6


def test_new_pictures_of_a_concept_are_in_scenes_its_references_do_not_show(wardrobe, monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "render", lambda depiction, *_: seen.append(depiction) or np.zeros(1))
    measure.concept_pictures(held_out()[2], wardrobe, 0, 20, photos=True)
    assert len(seen) == 20
    assert {depiction.style for depiction in seen} == {"photo"}
    assert not {depiction.scene for depiction in seen} & set(REFERENCE_SCENES)


def test_other_instances_are_of_the_category_and_not_the_concept(wardrobe, monkeypatch):
    concept, seen = held_out()[0], []
    monkeypatch.setattr(measure, "render", lambda depiction, *_: seen.append(depiction.thing) or np.zeros(1))
    measure.other_instances(concept, wardrobe, 0, 30, same_art=True)
    measure.other_instances(concept, wardrobe, 0, 30, same_art=False)
    assert {thing.noun for thing in seen} == {concept.thing.noun}
    assert {thing.instance.art for thing in seen[:30]} == {concept.thing.instance.art}
    assert not {thing.instance.art for thing in seen[30:]} & set(concept.withheld)
    assert all(thing.instance != concept.thing.instance for thing in seen)


def test_rows_of_two_splits_are_numbered_through():
    parts = (np.arange(4).reshape(4, 1), np.arange(10, 13).reshape(3, 1))
    data = JudgeData(parts, parts, np.zeros(7))
    assert data.at(data.pictures, np.array([6, 0, 4, 3])).ravel().tolist() == [12, 0, 10, 3]


def test_schedule_prompts_are_the_worlds(tmp_path):
    for prompt in schedule.PROMPTS:
        depiction = depicted(held_out()[0], prompt, "")
        assert depiction.scene in ("", *SCENE_NAMES)
        assert depiction.scene not in REFERENCE_SCENES
    assert {depicted(held_out()[0], prompt).style for prompt in schedule.PROMPTS} == set(STYLE_NAMES)


def test_only_complete_trials_are_in_the_table_best_first(tmp_path):
    tuning = [concept.name for concept in held_out() if concept.split == "tuning"]
    rows = [
        {"trial": trial, "concept": name, "identity": value, "scene": 1, "style": 1, "object": 1, "both": value}
        for trial, value, names in (("low", 0.2, tuning), ("high", 0.4, tuning), ("partial", 0.9, tuning[:3]))
        for name in names
    ]
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "schedule.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = schedule.table(tmp_path)
    assert [(row["trial"], row["both"]) for row in table] == [("high", 0.4), ("low", 0.2)]


def test_trials_multiply_the_papers_fast_rates():
    settings = dict(setting.split("=") for setting in schedule.Trial(5, 10, 20).settings())
    rates = [float(settings[f"train.{stage}.learning_rate"]) for stage in ("embedding", "attention", "unet")]
    np.testing.assert_allclose(rates, [5e-3, 2e-4, 2e-4])


def test_sheets_are_grids_with_lines_between():
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    sheet = np.array(canvas.grid([red] * 5, 3, enlarged=1))
    assert sheet.shape == (129, 194, 3)
    assert (sheet[:64, :64] == red).all()
    assert (sheet[64] == 255).all()
    assert (sheet[65:, 130:] == 255).all()


def made_up_figures() -> dict[str, Any]:
    """Figures of the form that `card.gather` gives."""
    three = {"mean": 0.8, "min": 0.7, "max": 0.9}
    seen = dict.fromkeys(("object", "scene", "style", "all three", "colour", "object, photos"), three)
    judged = {"bundled judge": {"other art": three}, "instance encoder": {"other art": three}}
    curve = [{"step": 50, "seconds": 60.0, "loss": 2.0}, {"step": 100, "seconds": 120.0, "loss": 1.0}]
    return {
        "prompts": {
            "prompts": 504,
            "steps": 25,
            "guidance": 4.0,
            "generated": seen,
            "real": seen,
            "chance": {"object": 0.04},
        },
        "autoencoder": {
            "identity kept": {"bundled judge": 0.95},
            "psnr on references": 27.0,
            "psnr on new pictures": three,
        },
        "zero-shot": {"object": three, "chance": 0.042},
        "ranking": judged,
        "calibration": {"bundled judge": {"other objects": 0.1}, "text": {"its prompt": 0.4}},
        "trainings": {"U-Net": {"steps": 100, "batch": 64, "curve": curve}},
        "schedule": [{"trial": "paper", "identity": 0.5, "scene": 0.9, "style": 0.8, "object": 0.7, "both": 0.4}],
    }


def test_the_card_shows_every_figure():
    shown = card.tables(made_up_figures())
    for line in (
        "| object | 0.800 (0.700 to 0.900) | 0.800 (0.700 to 0.900) | 0.040 |",
        "| identity kept, bundled judge | 0.950 |",
        "| other art | 0.800 (0.700 to 0.900) | 0.800 (0.700 to 0.900) |",
        "| other objects | 0.100 |",
        "| U-Net | 100 | 64 | 2 |",
        "| paper | 0.5 | 0.9 | 0.8 | 0.7 | 0.4 |",
    ):
        assert line in shown


def test_the_card_replaces_its_tables_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "gather", lambda work: made_up_figures())
    page = tmp_path / "tiny.md"
    page.write_text(f"# Before\n\n{card.BEGIN}\nold\n{card.END}\n\nafter\n")
    for _ in range(2):
        card.write_card(tmp_path, tmp_path)
        assert (
            page.read_text() == f"# Before\n\n{card.BEGIN}\n\n{card.tables(made_up_figures())}\n\n{card.END}\n\nafter\n"
        )
    page.write_text("no place")
    with pytest.raises(ValueError, match="no place"):
        card.write_card(tmp_path, tmp_path)
