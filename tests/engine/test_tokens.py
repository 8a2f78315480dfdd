"""[V] in the tokenizer, in prompts and in the embedding table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnbooth_cli.engine.families import FAMILIES, Components
from attnbooth_cli.engine.tokens import (
    add_placeholder,
    category_pieces,
    check_length,
    placeholder,
    placeholder_ids,
    recorded_positions,
    substituted_rows,
    write_rows,
)
from attnbooth_cli.errors import InputError


@pytest.mark.parametrize("vectors", [1, 3])
def test_rows_start_as_the_categorys_first_piece(components: Components, vectors: int) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", vectors, "teddy bear")
    rows = add_placeholder(encoder.tokenizer, encoder.model, concept)
    first = encoder.tokenizer("teddy", add_special_tokens=False).input_ids[0]
    table = encoder.model.get_input_embeddings().weight
    assert rows.shape == (vectors, 128)
    assert all(torch.equal(row, table[first]) for row in rows)
    assert torch.equal(table[placeholder_ids(encoder.tokenizer, concept)], rows)


def test_other_embeddings_are_untouched(components: Components) -> None:
    (encoder,) = components.text_encoders
    before = encoder.model.get_input_embeddings().weight.detach().clone()
    concept = placeholder("<it>", 2, "cat")
    rows = add_placeholder(encoder.tokenizer, encoder.model, concept)
    write_rows(encoder.tokenizer, encoder.model, concept, rows + 1)
    assert torch.equal(encoder.model.get_input_embeddings().weight[: len(before)], before)


@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_positions_are_those_of_the_tokens_and_the_category_after_them(components: Components, vectors: int) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", vectors, "cat")
    add_placeholder(encoder.tokenizer, encoder.model, concept)
    text = concept.prompt("a photo of a {} on the beach")
    positions = recorded_positions(encoder.tokenizer, concept, text, 32)
    ids = encoder.tokenizer(text).input_ids
    cat = encoder.tokenizer("cat", add_special_tokens=False).input_ids[0]
    assert [ids[p] for p in positions] == [*placeholder_ids(encoder.tokenizer, concept), cat]


def test_a_prompt_that_names_the_concept_twice_records_the_first(components: Components) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", 1, "cat")
    add_placeholder(encoder.tokenizer, encoder.model, concept)
    assert recorded_positions(encoder.tokenizer, concept, concept.prompt("a {} and a {}"), 32) == [2, 3]


def test_an_existing_token_is_refused(components: Components) -> None:
    (encoder,) = components.text_encoders
    add_placeholder(encoder.tokenizer, encoder.model, placeholder("<it>", 1, "cat"))
    with pytest.raises(InputError, match="already exists"):
        add_placeholder(encoder.tokenizer, encoder.model, placeholder("<it>", 1, "cat"))


def test_an_unknown_category_is_refused_and_shown(components: Components) -> None:
    (encoder,) = components.text_encoders
    with pytest.raises(InputError, match=r"does not know.*xyzzy"):
        category_pieces(encoder.tokenizer, "xyzzy")
    assert category_pieces(encoder.tokenizer, "teddy bear") == ("teddy", "bear")


def test_substituted_rows_are_what_the_table_would_give(components: Components) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", 2, "cat")
    rows = add_placeholder(encoder.tokenizer, encoder.model, concept)
    changed = (rows + torch.randn(rows.shape)).requires_grad_(True)
    encode = FAMILIES["stable-diffusion"].encode
    text = concept.prompt("a photo of a {}")
    with substituted_rows(encoder.model, placeholder_ids(encoder.tokenizer, concept), changed):
        hooked = encode(components, [text])["encoder_hidden_states"]
    hooked.sum().backward()
    assert changed.grad is not None
    assert (changed.grad.abs().sum(dim=1) > 0).all()
    assert encoder.model.get_input_embeddings().weight.grad is None
    write_rows(encoder.tokenizer, encoder.model, concept, changed)
    with torch.no_grad():
        assert torch.equal(encode(components, [text])["encoder_hidden_states"], hooked)


def test_a_cut_off_concept_is_refused_and_lost_words_are_named(components: Components) -> None:
    (encoder,) = components.text_encoders
    concept = placeholder("<it>", 1, "cat")
    add_placeholder(encoder.tokenizer, encoder.model, concept)
    filler = " ".join(["grass"] * 40)
    with pytest.raises(InputError, match="cut off"):
        check_length(encoder.tokenizer, concept, concept.prompt(f"{filler} {{}}"), 32)
    warning = check_length(encoder.tokenizer, concept, concept.prompt(f"a {{}} {filler} beach"), 32)
    assert warning is not None
    assert "beach" in warning
    assert check_length(encoder.tokenizer, concept, concept.prompt("a photo of a {}"), 32) is None


@given(st.text(max_size=40))
def test_a_prompt_without_the_concept_is_refused_whatever_else_it_holds(text: str) -> None:
    concept = placeholder("<it>", 2, "cat")
    if "{}" in text or "<it>" in text:
        assert "<it> <it>_1" in concept.prompt(text)
    else:
        with pytest.raises(InputError, match="does not name the concept"):
            concept.prompt(text)


def test_other_braces_are_left_alone() -> None:
    assert placeholder("<it>", 1, "cat").prompt("a {} {0} {x}") == "a <it> cat {0} {x}"
