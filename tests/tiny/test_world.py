"""The world the bundled model is trained on: its grammar says what is shown, and held-out concepts stay unseen."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tools.tiny.art import SPRITE_SIZE, Sprite
from tools.tiny.canvas import SIDE
from tools.tiny.captions import FILLERS, caption, ordinary, vocabulary
from tools.tiny.concepts import held_out, withheld_art
from tools.tiny.dataset import LABELS, NOUN_NAMES, SCENE_NAMES, STYLE_NAMES, _label, draw_pair, training_art
from tools.tiny.depiction import Depiction, Thing
from tools.tiny.instances import PATTERN_FIELDS, Instance, Wardrobe, allowed, body_mask, draw_instance
from tools.tiny.objects import (
    COLOURS,
    NOUNS,
    PATTERNS,
    RESERVED_PATTERNS,
    RESERVED_RADIUS,
    RESERVED_TONES,
    SIZES,
)
from tools.tiny.render import HEIGHTS, draw_pose, render
from tools.tiny.scenes import ALL_SCENES, PLAIN, SCENES
from tools.tiny.styles import STYLES
from tools.tiny.truth import PROMPTS, REFERENCE_SCENES, REFERENCES, depicted, references, true_picture


def sprite(art: str, noun: str, hue: tuple[int, int, int] = (200, 120, 60)) -> Sprite:
    """A disc with an eye, standing in for art that is not here."""
    picture = Image.new("RGBA", (SPRITE_SIZE, SPRITE_SIZE))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 8, SPRITE_SIZE - 8, SPRITE_SIZE - 1), fill=(*hue, 255))
    draw.ellipse((30, 30, 42, 42), fill=(20, 20, 20, 255))
    return Sprite(art, noun, np.array(picture))


@pytest.fixture(scope="module")
def wardrobe() -> Wardrobe:
    """Two drawings of every noun, and every drawing that is held out."""
    sprites = [sprite(f"{kind}/{noun}", noun) for noun in NOUNS for kind in ("made", "other")]
    noun_of = {art: concept.thing.noun for concept in held_out() for art in concept.withheld}
    return Wardrobe([*sprites, *(sprite(art, noun) for art, noun in noun_of.items())])


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@st.composite
def depictions(draw: st.DrawFn) -> Depiction:
    """Any depiction the world can draw, patterns and companions included."""
    seed = draw(st.integers(0, 2**32))
    art = {noun: [f"made/{noun}", f"other/{noun}"] for noun in NOUN_NAMES}
    return draw_pair(art, rng(seed))[draw(st.integers(0, 1))]


# the world's size, and what is kept apart


def test_the_world_is_as_large_as_it_says():
    assert len(NOUNS) == 24
    assert len(SCENES) == 16
    assert len(STYLES) == 8
    assert list(ALL_SCENES) == [*SCENES, *PLAIN]
    assert set(PATTERN_FIELDS) == {*PATTERNS, *RESERVED_PATTERNS}


def test_held_out_concepts_are_twelve_six_and_two():
    splits = [concept.split for concept in held_out()]
    assert {split: splits.count(split) for split in splits} == {"test": 12, "tuning": 6, "example": 2}
    names = [concept.name for concept in held_out()]
    assert len(set(names)) == len(names)
    looks = [replace(concept.thing.instance, scale=0, turn=0) for concept in held_out()]
    assert len(set(looks)) == len(looks)
    assert {concept.thing.noun for concept in held_out()} <= set(NOUNS)


def test_held_out_concepts_wear_nothing_that_training_wears():
    for concept in held_out():
        instance = concept.thing.instance
        assert instance.base in RESERVED_TONES.values()
        assert instance.accent in RESERVED_TONES.values()
        assert instance.base != instance.accent
        assert instance.pattern in RESERVED_PATTERNS
        assert instance.art in withheld_art()


def test_every_noun_keeps_art_to_train_on_and_none_of_it_is_held_out(wardrobe):
    art = training_art(wardrobe)
    assert all(art[noun] for noun in NOUNS)
    assert not withheld_art() & {name for its in art.values() for name in its}


def test_reserved_tones_are_not_what_a_colour_word_means():
    assert all(allowed(tone) for tone in COLOURS.values())
    assert not any(allowed(tone) for tone in RESERVED_TONES.values())


@given(seed=st.integers(0, 2**32), colour=st.sampled_from([None, *COLOURS]))
def test_training_paint_stays_clear_of_reserved_tones_and_patterns(seed, colour):
    instance = draw_instance("made/cat", colour, rng(seed))
    for tone in filter(None, (instance.base, instance.accent)):
        assert min(np.linalg.norm(np.subtract(tone, kept)) for kept in RESERVED_TONES.values()) > RESERVED_RADIUS
    assert instance.pattern in (None, *PATTERNS)
    assert (instance.pattern is None) == (instance.accent is None)
    if colour is not None:
        assert np.abs(np.subtract(instance.base, COLOURS[colour])).max() < 0.25


# the grammar


@given(depiction=depictions(), seed=st.integers(0, 2**32))
def test_a_caption_says_only_what_is_shown(depiction, seed):
    said = caption(depiction, rng(seed))
    words = set(said.split())
    shown = " ".join(filter(None, (depiction.thing.noun, depiction.companion and depiction.companion.noun)))
    for noun in NOUNS:
        if re.search(rf"\b{noun}\b", said):
            assert noun in shown
    assert depiction.thing.noun in said
    named = {depiction.thing.colour, depiction.companion and depiction.companion.colour}
    described = said.split(" on a ")[0] if depiction.scene in PLAIN else said
    assert words_of(described) & set(COLOURS) <= named | {"green"}  # "on green grass"
    phrases = [name for name, scene in ALL_SCENES.items() if any(phrase in said for phrase in scene.phrases)]
    assert set(phrases) <= {depiction.scene}
    patterns = {word for pattern, word in PATTERNS.items() if word in words}
    worn = {depiction.thing.instance.pattern, depiction.companion and depiction.companion.instance.pattern}
    assert patterns <= {PATTERNS[pattern] for pattern in worn if pattern}
    if depiction.thing.colour:
        assert depiction.thing.colour in words
    if depiction.size is None:
        assert not words & {word for its in SIZES.values() for word in its}


def words_of(text: str) -> set[str]:
    return set(text.split())


@given(depiction=depictions(), seed=st.integers(0, 2**32))
def test_style_is_always_said_unless_it_is_a_photo(depiction, seed):
    said = caption(depiction, rng(seed))
    style = STYLES[depiction.style]
    if depiction.style == "photo":
        others = [opening for name, its in STYLES.items() if name != "photo" for opening in its.openings]
        assert not said.startswith(tuple(others))
        assert "in the style of" not in said
    else:
        assert said.startswith(style.openings) or said.endswith(f"in the style of {style.manner}")


@given(depiction=depictions(), seed=st.integers(0, 2**32))
def test_articles_fit(depiction, seed):
    said = caption(depiction, rng(seed))
    for article, word in re.findall(r"\b(an?) ([a-z])", said):
        assert article == ("an" if word in "aeiou" else "a")


def test_the_training_prompt_is_among_the_captions():
    thing = Thing("cat", Instance("made/cat"))
    found = {caption(Depiction(thing, "beach", "photo"), rng(seed)) for seed in range(300)}
    assert "a photo of a cat" in found
    assert any(word in text for text in found for word in FILLERS)


def test_plain_wording():
    assert ordinary("red cat", "beach", "photo") == "a photo of a red cat on the beach"
    assert ordinary("orange owl", None, "oil painting") == "an oil painting of an orange owl"


@given(depiction=depictions(), seed=st.integers(0, 2**32))
def test_captions_use_no_word_outside_the_vocabulary(depiction, seed):
    known = {word for phrase in vocabulary() for word in phrase.split()}
    assert words_of(caption(depiction, rng(seed))) <= known


# drawing


@given(depiction=depictions(), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_pictures_are_whole_and_depend_on_the_seed_alone(depiction, seed, wardrobe):
    first, second = (render(depiction, wardrobe, rng(seed)) for _ in range(2))
    assert first.shape == (SIDE, SIDE, 3)
    assert first.dtype == np.uint8
    assert (first == second).all()
    assert first.std() > 1


def test_scenes_and_styles_differ(wardrobe):
    thing = Thing("cat", Instance("made/cat"))
    pictures = [render(Depiction(thing, scene, "photo"), wardrobe, rng(1)) for scene in SCENE_NAMES]
    pictures += [render(Depiction(thing, "beach", style), wardrobe, rng(1)) for style in STYLE_NAMES[1:]]
    flat = np.stack(pictures).reshape(len(pictures), -1).astype(float)
    apart = np.abs(flat[:, None] - flat[None]).mean(-1) + 100 * np.eye(len(flat))
    assert apart.min() > 4  # of 255


def test_paint_changes_the_body_and_nothing_else(wardrobe):
    plain = wardrobe.paint(Instance("made/cat"))
    painted = wardrobe.paint(Instance("made/cat", base=(0.1, 0.2, 0.9)))
    mask, _ = body_mask(sprite("made/cat", "cat").pixels)
    body, eye = (mask > 0.99) & (plain[..., 3] == 1), np.zeros_like(mask, bool)
    eye[33:39, 33:39] = True
    assert body.mean() > 0.3
    assert (painted[body][:, 2] > painted[body][:, 0] + 0.3).all()
    assert np.abs(painted - plain)[eye].max() < 0.02
    assert (painted[..., 3] == plain[..., 3]).all()


@pytest.mark.parametrize("pattern", list(PATTERN_FIELDS))
def test_patterns_mix_two_tones(pattern, wardrobe):
    base, accent = (0.1, 0.2, 0.9), (0.95, 0.9, 0.2)
    painted = wardrobe.paint(Instance("made/cat", base, accent, pattern, scale=0.25, turn=0.4))
    mask, _ = body_mask(sprite("made/cat", "cat").pixels)
    colours = painted[(mask > 0.99) & (painted[..., 3] == 1)][:, :3]
    near = [
        np.abs(colours / colours.max(1, keepdims=True) - np.divide(tone, max(tone))).max(1) < 0.2
        for tone in (base, accent)
    ]
    assert all(share.mean() > 0.1 for share in near), [share.mean() for share in near]


@given(seed=st.integers(0, 2**32), size=st.sampled_from(list(HEIGHTS)), grounded=st.booleans())
def test_poses_keep_a_thing_in_the_picture(seed, size, grounded):
    pose = draw_pose(size, grounded, rng(seed))
    low, high = HEIGHTS[size]
    assert low <= pose.height <= high
    assert pose.x - pose.height / 2 >= -0.05
    assert pose.x + pose.height / 2 <= 1.05
    assert pose.foot - pose.height > -0.2
    assert pose.foot < 1.2


# labels, concepts and true pictures


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_pairs_share_their_instance_and_labels_say_so(seed, wardrobe):
    art = training_art(wardrobe)
    first, second = draw_pair(art, rng(seed))
    assert first.thing == second.thing
    labels = np.array([_label(d, 7, list(wardrobe.art)) for d in (first, second)], dtype=LABELS)
    assert labels["instance"][0] == labels["instance"][1]
    assert (labels["instance"][0] == 7) == (first.thing.instance.base is not None)
    for label, depiction in zip(labels, (first, second), strict=True):
        assert NOUN_NAMES[label["noun"]] == depiction.thing.noun
        assert SCENE_NAMES[label["scene"]] == depiction.scene
        assert STYLE_NAMES[label["style"]] == depiction.style
        assert (label["companion"] == -1) == (depiction.companion is None)


def test_references_are_photos_in_different_scenes(wardrobe):
    for concept in held_out():
        taken = references(concept, wardrobe)
        assert len(taken) == len({scene for scene, _ in taken}) == REFERENCES
        assert {scene for scene, _ in taken} <= set(REFERENCE_SCENES)
        again = references(concept, wardrobe)
        assert all((a == b).all() for (_, a), (_, b) in zip(taken, again, strict=True))


@pytest.mark.parametrize(
    ("prompt", "scene", "style", "colour"),
    [
        ("a photo of a {} on a sandy beach", "beach", "photo", None),
        ("an oil painting of a {} in the forest", "forest", "oil painting", None),
        ("a {} on a red background in the style of a pencil sketch", "red background", "sketch", None),
        ("a photo of a blue {} on green grass", "grass", "photo", "blue"),
        ("a pencil sketch of a {} on the road", "road", "sketch", None),
        ("a photo of a {}", "white background", "photo", None),
    ],
)
def test_prompts_are_read_back(prompt, scene, style, colour):
    concept = held_out()[0]
    depiction = depicted(concept, prompt)
    assert (depiction.scene, depiction.style, depiction.thing.colour) == (scene, style, colour)
    assert depiction.thing.instance.accent == concept.thing.instance.accent


@pytest.mark.parametrize(
    ("prompt", "size", "companion"),
    [
        ("a photo of a small red {} on a sandy beach", "small", None),
        ("a close-up photo of a {} on the road", "large", None),
        ("a photo of a {} next to a tree in the snow", None, ("tree", None)),
        ("an oil painting of a {} beside a red mushroom in the forest", None, ("mushroom", "red")),
        ("a photo of a huge blue {} and a teddy bear in the snow", None, ("teddy bear", None)),
        ("a photo of a {} in a city", None, None),
    ],
)
def test_sizes_and_companions_are_read_back(prompt, size, companion):
    depiction = depicted(held_out()[0], prompt)
    assert depiction.size == size
    found = depiction.companion
    assert (found and (found.noun, found.colour)) == companion
    assert found is None or found.instance.art not in withheld_art()


def test_every_prompt_that_is_exported_has_a_scene_of_its_own_or_none():
    """All of them are in the grammar: what they name is found."""
    complex_ones = PROMPTS[24:]
    assert len(PROMPTS) == 36
    assert all(depicted(held_out()[0], prompt, "").scene for prompt in PROMPTS)
    assert sum(depicted(held_out()[0], prompt).companion is not None for prompt in complex_ones) == 10


@given(depiction=depictions(), seed=st.integers(0, 2**32))
def test_any_caption_is_read_back(depiction, seed):
    depiction = replace(depiction, companion=None, size=None)
    said = re.sub(rf"\b{depiction.thing.noun}\b", "{}", caption(depiction, rng(seed)))  # a car, not a cartoon
    found = depicted(held_out()[0], said)
    assert found.style == depiction.style
    assert found.scene in (depiction.scene, "white background")


def test_a_prompt_without_a_place_for_the_concept_is_refused():
    with pytest.raises(ValueError, match=r"no \{\}"):
        depicted(held_out()[0], "a photo of a cat")


def test_true_pictures_vary_with_the_seed_only(wardrobe):
    concept = held_out()[3]
    first, again, other = (true_picture(concept, "a photo of a {} in the snow", wardrobe, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
