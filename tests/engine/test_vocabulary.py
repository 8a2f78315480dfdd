"""What the bundled model knows, and that real tokenizers are not asked."""

from __future__ import annotations

from typing import Any

import pytest

from attnbooth_cli.engine.base_models import resolve
from attnbooth_cli.engine.catalogue import STABLE_DIFFUSION, TINY
from attnbooth_cli.engine.families import load_tokenizer
from attnbooth_cli.engine.prompts import COMPLEX, EVALUATION
from attnbooth_cli.engine.vocabulary import is_known, known_nouns, unknown_words, warn_of_unknown_words
from attnbooth_cli.events import Event, Warned
from tools.tiny.objects import NOUNS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("tiny"))


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a photo of a cat on a beach", ()),
        ("A Photo, of a CAT!", ()),
        ("pixel-art of a (cat)", ()),
        ("a zebra and a castle and a zebra", ("zebra", "castle")),
        ("beaches", ("beaches",)),
        ("a cat \N{PARTY POPPER}", ("\N{PARTY POPPER}",)),
        ("", ()),
    ],
)
def test_words_outside_its_captions(tokenizer: Any, text: str, unknown: tuple[str, ...]) -> None:
    assert unknown_words(tokenizer, text) == unknown


def test_its_own_prompts_hold_none(tokenizer: Any) -> None:
    sets = (EVALUATION["tiny"], COMPLEX["tiny"])
    prompts = [prompt for groups in sets for group in groups.values() for prompt in group]
    assert len(prompts) >= 36
    assert {prompt: words for prompt in prompts if (words := unknown_words(tokenizer, prompt.replace("{}", "")))} == {}


def test_a_full_size_tokenizer_is_not_asked() -> None:
    class Large:
        def __len__(self) -> int:
            return 49_408

    assert unknown_words(Large(), "xqzvk") == ()


def test_each_prompt_is_said_once(tokenizer: Any) -> None:
    said: list[Event] = []
    warn_of_unknown_words(tokenizer, "<my-zebra>", ["a <my-zebra> zebra", "a {}", "a <my-zebra> zebra"], said.append)
    assert said == [Warned("the base model does not know 'zebra' (in 'a <my-zebra> zebra')")]


def test_the_catalogue_lists_the_worlds_nouns() -> None:
    assert TINY.nouns == tuple(NOUNS)


@pytest.mark.parametrize(
    ("category", "known"), [("cat", True), ("teddy bear", True), ("red teapot", True), ("bear", False), ("acat", False)]
)
def test_categories(category: str, known: bool) -> None:
    assert is_known(TINY, category) is known
    assert is_known(STABLE_DIFFUSION, category)


def test_what_could_stand_in_a_categorys_place() -> None:
    every = f"tiny knows: {', '.join(NOUNS)}"
    assert known_nouns(TINY, "zebra") == every
    assert known_nouns(TINY, "mushrom") == f"did you mean mushroom? {every}"
    assert known_nouns(STABLE_DIFFUSION, "zebra") is None
