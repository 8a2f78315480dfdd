"""Trained projects as a stranger may hand them over: the second half of the table of bad inputs (`bad_inputs.py`)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.reliability.bad_inputs import TINY, Bad, entry, safetensors

RUN = "001-attndreambooth"


def stranger(name: str, change: Callable[[Path], object], command: tuple[str, ...], code: int, says: str) -> Bad:
    """A change to a project with a concept of one step, PLACE/p."""
    return Bad(f"stranger: {name}", lambda place: change(place / "p"), command, code, says)


def edit_json(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes a JSON document of a project."""

    def edit(root: Path) -> None:
        document = json.loads((root / file).read_text(encoding="utf-8"))
        change(document)
        (root / file).write_text(json.dumps(document), encoding="utf-8")

    return edit


def overwritten(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / file).write_bytes(data)


def concept_file(file: str, data: bytes) -> Callable[[Path], None]:
    """Puts a file into `concept/`, with its right hash on the card."""

    def put(root: Path) -> None:
        (root / "concept" / file).write_bytes(data)
        said = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit_json("concept/concept.json", lambda card: card["files"].update({file: said}))(root)

    return put


def checkpoint(tensors: dict[str, bytes], stage: str = "attention", step: int = 1) -> Callable[[Path], None]:
    """Puts a checkpoint into the run, with its right hashes."""

    def put(root: Path) -> None:
        folder = root / "runs" / RUN / "checkpoints" / f"{stage}-{step:06d}"
        folder.mkdir(parents=True)
        for name, data in tensors.items():
            (folder / name).write_bytes(data)
        document = {
            "schema": 1,
            "stage": stage,
            "step": step,
            "scaler": None,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in tensors.items()},
        }
        (folder / "checkpoint.json").write_text(json.dumps(document), encoding="utf-8")

    return put


def stage_result(data: bytes) -> Callable[[Path], None]:
    """Puts another result of the finished stage into the run, with its right hash."""

    def put(root: Path) -> None:
        folder = root / "runs" / RUN / "stages" / "embedding"
        (folder / "weights.safetensors").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        edit_json(
            f"runs/{RUN}/stages/embedding/checkpoint.json",
            lambda document: document["files"].update({"weights.safetensors": digest}),
        )(root)

    return put


def moved_out(name: str) -> Callable[[Path], None]:
    """Lets a file or folder of the project stand outside it, with a link in its place."""

    def move(root: Path) -> None:
        outside = root.parent / "outside" / name
        outside.parent.mkdir(parents=True, exist_ok=True)
        (root / name).rename(outside)
        (root / name).symlink_to(outside)

    return move


def linked_out(name: str, target: str) -> Callable[[Path], None]:
    """Puts a link to a file or folder outside the project where the project has none."""

    def link(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)

    return link


def piped(name: str) -> Callable[[Path], None]:
    """Lets a pipe, which nobody writes to, stand in a file's place."""

    def pipe(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)

    return pipe


def run_called(name: str) -> Callable[[Path], None]:
    def rename(document: dict[str, Any]) -> None:
        document["runs"][0]["name"] = name
        document["runs"][0]["status"] = "unfinished"

    return edit_json("state.json", rename)


GENERATE = ("generate", "PLACE/p", "a {}", "--steps=1")
RESUME = ("resume", "PLACE/p")
STATUS = ("status", "PLACE/p")
PLAN = f"runs/{RUN}/plan.json"
CARD = "concept/concept.json"
EMBEDS = "learned_embeds.safetensors"
DEEP = b"[" * 100_000


def rows(shape: list[int], name: str = "<felix>", dtype: str = "F32") -> bytes:
    size = 4
    for side in shape:
        size *= side
    return safetensors({name: entry(dtype, shape, 0, size)}, bytes(size))


def card(**changes: Any) -> Callable[[Path], None]:
    """The card with other values."""
    return edit_json(CARD, lambda document: document.update(changes))


def card_file(name: str, said: Any) -> Callable[[Path], None]:
    """The card with another entry in its list of files."""
    return edit_json(CARD, lambda document: document["files"].update({name: said}))


def plan(**changes: Any) -> Callable[[Path], None]:
    """The run's plan with other values."""
    return edit_json(PLAN, lambda document: document["plan"].update(changes))


def embeds(data: bytes) -> Callable[[Path], None]:
    """Another embedding, with its right hash on the card."""
    return concept_file(EMBEDS, data)


STRANGERS = (
    stranger("a card that is no JSON", overwritten(CARD, b"{"), GENERATE, 5, "concept.json cannot be read"),
    stranger("a card nested too deep", overwritten(CARD, DEEP), GENERATE, 5, "concept.json cannot be read"),
    stranger("a card that is a list", overwritten(CARD, b"[]"), GENERATE, 5, "concept.json cannot be read"),
    stranger("a card of a newer version", card(schema=9), GENERATE, 2, "has schema 9"),
    stranger(
        "a card without its base", edit_json(CARD, lambda c: c.pop("base")), GENERATE, 5, "concept.json cannot be"
    ),
    stranger("a card without files", edit_json(CARD, lambda c: c.pop("files")), GENERATE, 5, "concept.json"),
    stranger("a card whose files are a list", card(files=[1]), GENERATE, 5, "concept.json"),
    stranger("a card whose step is text", card(step="x"), GENERATE, 5, "concept.json"),
    stranger("a card whose token is a number", card(token=1), GENERATE, 5, "concept.json"),
    stranger("a card with a million tokens", card(tokens=["a"] * 10**6), GENERATE, 5, "concept.json"),
    stranger("a card with a hash that is no text", card_file(EMBEDS, 1), GENERATE, 5, "concept.json"),
    stranger(
        "a card that names a file above", card_file("../x", {"sha256": ""}), GENERATE, 5, "../x is not in this folder"
    ),
    stranger(
        "a card that names a file by its absolute path",
        card_file(str(TINY / "model_index.json"), {"sha256": "0"}),
        GENERATE,
        5,
        "is not in this folder",
    ),
    stranger("a card whose step is infinite", card(step=math.inf), GENERATE, 5, "concept.json"),
    stranger("a card without its digest", edit_json(CARD, lambda c: c.pop("digest")), GENERATE, 5, "concept.json"),
    stranger("a card without a plan", card(plan=None), GENERATE, 5, "concept.json"),
    stranger("a card whose category is a list", card(category=[1]), GENERATE, 5, "concept.json"),
    stranger("a card whose category is an escape", card(category="\x1b[31mX"), GENERATE, 5, "concept.json"),
    *(
        stranger(
            f"a card of {said} pixels",
            edit_json(CARD, lambda c, said=said: c["plan"].update(resolution=said)),  # type: ignore[misc]
            GENERATE,
            5,
            "its resolution cannot be",
        )
        for said in (63, 0, -64, 100_000, math.inf, "64")
    ),
    stranger(
        "a card whose base is a number",
        edit_json(CARD, lambda c: c["base"].update(model=3)),
        GENERATE,
        5,
        "its base model is not named",
    ),
    stranger("a card of a run above", card(run="../../x"), GENERATE, 5, "concept.json"),
    stranger(
        "an embedding with another hash",
        overwritten(f"concept/{EMBEDS}", rows([1, 128])),
        GENERATE,
        5,
        "missing or damaged",
    ),
    stranger("an embedding of another width", embeds(rows([1, 7])), GENERATE, 5, "needs width 128"),
    stranger(
        "an embedding of two tensors",
        embeds(safetensors({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 4, 8)}, bytes(8))),
        GENERATE,
        5,
        EMBEDS,
    ),
    stranger("an embedding without a tensor", embeds(safetensors({})), GENERATE, 5, EMBEDS),
    stranger(
        "an embedding whose header lies",
        embeds(safetensors({"a": entry("F32", [10**9, 10**9], 0, 4)}, bytes(4))),
        GENERATE,
        5,
        "cannot be read",
    ),
    stranger(
        "an embedding of a type torch has not", embeds(rows([1, 128], dtype="F99")), GENERATE, 5, "cannot be read"
    ),
    stranger(
        "an embedding of four bits a number",
        embeds(safetensors({"a": entry("F4", [1, 128], 0, 64)}, bytes(64))),
        GENERATE,
        5,
        EMBEDS,
    ),
    stranger(
        "an embedding of NaN",
        embeds(safetensors({"a": entry("F32", [1, 128], 0, 512)}, b"\xff" * 512)),
        GENERATE,
        5,
        EMBEDS,
    ),
    stranger(
        "a network for the concept without its tensors",
        concept_file("neti_mapper.safetensors", safetensors({})),
        GENERATE,
        5,
        "neti_mapper.safetensors",
    ),
    stranger(
        "a state of a newer version", edit_json("state.json", lambda s: s.update(schema=9)), STATUS, 2, "schema 9"
    ),
    stranger("a state with a run that is gone", run_called("002-gone"), RESUME, 5, "002-gone"),
    stranger("a plan that is no JSON", overwritten(PLAN, b"{"), RESUME, 5, "plan.json is missing or damaged"),
    stranger("a plan nested too deep", overwritten(PLAN, DEEP), RESUME, 5, "plan.json is missing or damaged"),
    stranger(
        "a plan of another shape", overwritten(PLAN, b'{"schema": 1, "plan": [1]}'), RESUME, 5, "plan.json is damaged"
    ),
    stranger(
        "a plan with a picture above",
        edit_json(PLAN, lambda p: p["plan"]["pictures"][0].update(name="../attnbooth.toml")),
        RESUME,
        5,
        "plan.json",
    ),
    stranger(
        "a plan with minus one step",
        edit_json(PLAN, lambda p: [s.update(steps=-1) for s in p["plan"]["stages"]]),
        RESUME,
        5,
        "plan.json",
    ),
    *(
        stranger(f"a plan with {key} {value!r:.9}", plan(**{key: value}), RESUME, 5, "plan.json")
        for key, value in {
            "pictures": [],
            "stages": [],
            "prompts": [],
            "seed": 10**40,
            "augmentation_pool": -1,
            "checkpoint_every": -1,
            "micro_batch_size": -4,
        }.items()
    ),
    stranger(
        "a plan with every stage twice",
        edit_json(PLAN, lambda p: p["plan"].update(stages=2 * p["plan"]["stages"])),
        RESUME,
        5,
        "its stages are not those of",
    ),
    *(
        stranger(
            f"a plan with a learning rate of {rate}",
            edit_json(PLAN, lambda p, rate=rate: [s.update(learning_rate=rate) for s in p["plan"]["stages"]]),  # type: ignore[misc]
            RESUME,
            5,
            "plan.json",
        )
        for rate in (-1.0, math.nan, math.inf)
    ),
    stranger(
        "a plan with a thousand million vectors",
        edit_json(PLAN, lambda p: p["plan"]["concept"].update(vectors=10**9)),
        RESUME,
        5,
        "vectors",
    ),
    stranger("a plan with a method nobody knows", plan(method="x"), RESUME, 5, "plan.json"),
    stranger("a plan with an augmentation nobody knows", plan(augmentation="x"), RESUME, 5, "plan.json"),
    stranger("a plan with a resolution of no pixels", plan(resolution=0), RESUME, 5, "plan.json"),
    stranger("a stage's result without its tensor", stage_result(safetensors({})), RESUME, 5, "weights.safetensors"),
    stranger("a stage's result of another shape", stage_result(rows([7, 7], "rows")), RESUME, 5, "weights.safetensors"),
    stranger(
        "a checkpoint without its tensors",
        checkpoint({"weights.safetensors": safetensors({}), "optimizer.safetensors": safetensors({})}),
        RESUME,
        5,
        "weights.safetensors",
    ),
    stranger("a checkpoint without its files", checkpoint({}), RESUME, 5, "weights.safetensors"),
    stranger(
        "a checkpoint of a step beyond its stage",
        checkpoint({"weights.safetensors": safetensors({})}, step=7),
        RESUME,
        5,
        "step 7 of 1",
    ),
    stranger("runs/ that is elsewhere", moved_out("runs"), RESUME, 2, "leads out of the project"),
    stranger("a run that is elsewhere", moved_out(f"runs/{RUN}"), RESUME, 2, "leads out of the project"),
    stranger("a run's events that are elsewhere", moved_out(f"runs/{RUN}/events.jsonl"), RESUME, 2, "leads out of the"),
    stranger(
        "a stage's result that is elsewhere", moved_out(f"runs/{RUN}/stages/embedding"), RESUME, 2, "leads out of"
    ),
    stranger("weights that are elsewhere", moved_out(f"concept/{EMBEDS}"), GENERATE, 2, "leads out of the project"),
    stranger("a sample that is elsewhere", linked_out("samples/a.png", "/gone/a.png"), GENERATE, 2, "leads out of the"),
    stranger("features that are elsewhere", linked_out("eval/features", "/tmp"), STATUS, 2, "leads out of the project"),
    stranger("held-out pictures that are elsewhere", linked_out("held-out", "/tmp"), STATUS, 2, "leads out of the"),
    stranger(
        "a replaced concept that is elsewhere", linked_out(".concept.replaced", "/tmp"), STATUS, 2, "leads out of"
    ),
    stranger("a pipe for events", piped(f"runs/{RUN}/events.jsonl"), RESUME, 2, "neither a file nor a folder"),
    stranger("a pipe for weights", piped(f"concept/{EMBEDS}"), GENERATE, 2, "neither a file nor a folder"),
    stranger("a pipe for a picture", piped("samples/a-cat-0.png"), GENERATE, 2, "neither a file nor a folder"),
    stranger("concept/ that is elsewhere", moved_out("concept"), GENERATE, 2, "leads out of the project"),
    stranger("a state that is elsewhere", moved_out("state.json"), STATUS, 2, "leads out of the project"),
    stranger("pictures that are elsewhere", moved_out("images"), RESUME, 2, "leads out of the project"),
    stranger("a manifest that is elsewhere", moved_out("attnbooth.toml"), STATUS, 2, "leads out of the project"),
)
