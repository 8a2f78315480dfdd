"""The manifest: strict, and clear about what is wrong and where."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnbooth_cli.errors import InputError
from attnbooth_cli.project.manifest import check_category, check_token, manifest_text, read_manifest

GOOD = """\
schema = 1
[concept]
name = "my_cat"
category = "cat"
token = "<my-cat>"
[base]
model = "tiny"
[train]
seed = 3
[train.unet]
steps = 300
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "attnbooth.toml"
    path.write_text(text, encoding="utf-8")
    return read_manifest(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as refused:
        read(tmp_path, text)
    return refused.value.message


def test_a_good_one(tmp_path: Path) -> None:
    manifest = read(tmp_path, GOOD)
    assert manifest.concept.images == "images"
    assert manifest.train.unet.steps == 300
    assert manifest.train.attention.steps is None


def test_a_misspelt_key_is_named_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.replace("steps = 300", "stepz = 300"))
    assert "train.unet.stepz (line 11), did you mean steps?" in message


def test_a_misplaced_table_is_named(tmp_path: Path) -> None:
    assert "unknown key train.unets (line 10), did you mean unet?" in refusal(
        tmp_path, GOOD.replace("[train.unet]", "[train.unets]")
    )


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.replace("seed = 3", 'seed = "3"').replace("steps = 300", "steps = 0"))
    assert "train.seed (line 9)" in message
    assert "train.unet.steps (line 11)" in message


def test_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    assert "schema 2" in refusal(tmp_path, GOOD.replace("schema = 1", "schema = 2"))


@pytest.mark.parametrize(
    "images", ["/etc", "../other", "a/../../b", "~/x", "C:\\\\x", "\\\\\\\\host\\\\share", "", "a\\u0000b"]
)
def test_paths_stay_inside(tmp_path: Path, images: str) -> None:
    assert "concept.images" in refusal(tmp_path, GOOD.replace("[base]", f'images = "{images}"\n[base]'))


@pytest.mark.parametrize("text", ["", "x", "schema = 1", "a = [", "\x00", "[concept]\nschema=1", "schema = 1\n" * 2])
def test_what_is_not_a_manifest(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda b: b.decode("latin-1"))))
def test_any_text_is_a_manifest_or_an_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "attnbooth.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):
        read_manifest(path)


@settings(deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100),
    model=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100),
)
def test_whatever_is_declared_is_read_back(name: str, model: str) -> None:
    text = manifest_text(
        name=name, category="cat", token="<c>", model=model, revision=None, resolution=None, native_resolution=64
    )
    document = tomllib.loads(text)
    assert document["concept"]["name"] == name
    assert document["base"]["model"] == model


@pytest.mark.parametrize("token", ["cat", "<>", "<a b>", "<a", "a>", "<{}>", "<a<b>>", "<|endoftext|>", "", "<\n>"])
def test_unsafe_tokens(token: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        check_token(token)


@pytest.mark.parametrize("category", ["", " ", "{}", "a_b", "<cat>", "cat\x00", "-", "cat."])
def test_unsafe_categories(category: str) -> None:
    with pytest.raises(ValueError, match="must be a noun"):
        check_category(category)


def test_categories_of_several_words() -> None:
    assert check_category("  stuffed   animal ") == "stuffed animal"
    assert check_category("t-shirt") == "t-shirt"
