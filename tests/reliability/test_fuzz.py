"""Whatever bytes a manifest, a state or a picture holds, only our own errors come of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import TARGETS, kept
from tests.reliability.bad_inputs import MANIFEST, encoded

KEPT = [(target, path) for target in TARGETS for path in kept(target)]
STATE = {
    "schema": 1,
    "runs": [{"name": "001-x", "digest": "d", "smoke": False, "status": "done", "stages": ["unet"], "created": ""}],
    "concept_run": "001-x",
}
WHOLE = {
    "manifest": [(MANIFEST + "[train]\nseed = 1\n[train.unet]\nsteps = 3\nlearning_rate = 1e-4\n").encode()],
    "state": [json.dumps(STATE).encode(), b'{"event": "stage", "status": "finished", "stage": "unet"}\n'],
    "picture": [
        *(encoded(kind, size=(8, 8)) for kind in ("PNG", "JPEG", "WEBP")),
        encoded("PNG", "P", (8, 8)),
        encoded("PNG", "LA", (8, 8)),
        encoded("JPEG", "CMYK", (8, 8)),
    ],
}
KEYS = [*STATE, "name", "digest", "smoke", "status", "stages", "created", "until", "run", "event"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)
fixed = settings(max_examples=80, derandomize=True, deadline=None, database=None)


def meet(target: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        TARGETS[target](Path(folder), data)


@pytest.mark.parametrize(("target", "path"), KEPT, ids=[f"{target} {path.name}" for target, path in KEPT])
def test_what_fuzzing_kept(target: str, path: Path) -> None:
    """The targets raise what they must not."""
    meet(target, path.read_bytes())


def test_there_are_inputs_for_every_target() -> None:
    assert {target for target, _ in KEPT} == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
@fixed
@given(data=st.data())
def test_something_whole_with_other_bytes(target: str, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(WHOLE[target])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 12, len(content))))
        content[start:end] = data.draw(st.binary(max_size=12))
    meet(target, bytes(content))


@fixed
@given(document=JSON)
def test_any_json_as_a_state(document: object) -> None:
    meet("state", json.dumps(document).encode())


@fixed
@given(
    key=st.sampled_from(["seed", "prompt", "resolution", "precision", "unet", "unet.steps", "unet.learning_rate", "x"]),
    value=st.from_regex(
        r"-?[0-9_]{1,30}(\.[0-9]{1,9})?(e[+-]?[0-9]{1,4})?|\"[^\"]{0,9}\"|0x[0-9a-f]{1,40}|[-+]?(inf|nan)"
    ),
)
def test_any_value_in_a_manifest(key: str, value: str) -> None:
    meet("manifest", f"{MANIFEST}[train]\n{key} = {value}\n".encode())
