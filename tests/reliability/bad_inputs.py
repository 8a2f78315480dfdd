"""Files as a stranger may hand them over: a table of bad inputs, each a line.

A line says what the input is, how it is made in an empty folder, the command that meets it, and what must come of it:
the exit code and a characteristic part of the one sentence on stderr. `test_bad_inputs.py` runs them all.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import EXAMPLE

TINY = EXAMPLE.parent / "tiny"
ONE_STEP = (
    "--until=embedding",
    *(f"--set=train.{stage}.steps=1" for stage in ("embedding", "attention", "unet")),
    *(f"--set=train.{stage}.batch_size=1" for stage in ("embedding", "attention", "unet")),
)


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Attributes:
        make: Makes it below a folder.
        command: What meets it; PLACE stands for that folder.
        says: Part of the error's sentence.
    """

    name: str
    make: Callable[[Path], object]
    command: tuple[str, ...]
    code: int
    says: str


# --- pictures ---------------------------------------------------------------------------------------------------------


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (48, 32), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG that says what it likes of itself."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def moving(kind: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 120, 250)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def in_folder(name: str, data: bytes) -> Callable[[Path], object]:
    """A folder `in` with one file."""

    def make(place: Path) -> object:
        (place / "in").mkdir()
        return (place / "in" / name).write_bytes(data)

    return make


def sparse(place: Path) -> None:
    (place / "in").mkdir()
    with (place / "in" / "a.png").open("wb") as file:
        file.truncate(10**12)


def pipe(place: Path) -> None:
    (place / "in").mkdir()
    os.mkfifo(place / "in" / "a.png")


def folder_called_picture(place: Path) -> None:
    (place / "in" / "a.png").mkdir(parents=True)


def link_in_a_circle(place: Path) -> None:
    (place / "in").mkdir()
    (place / "in" / "a.png").symlink_to("a.png")


def link_to_nothing(place: Path) -> None:
    (place / "in").mkdir()
    (place / "in" / "a.png").symlink_to(place / "gone.png")


INIT = ("init", "PLACE/felix", "--images", "PLACE/in", "--category", "cat", "--model", "tiny")


def picture(name: str, file: str, data: bytes, says: str) -> Bad:
    return Bad(f"picture: {name}", in_folder(file, data), INIT, 2, says)


PICTURES = (
    picture("zero bytes", "a.png", b"", "a.png is empty"),
    picture("text with a picture's extension", "a.jpg", b"a letter\n" * 99, "a.jpg is not a JPEG, PNG or WEBP"),
    picture("a GIF called JPEG", "a.jpg", encoded("GIF"), "a.jpg is not a JPEG, PNG or WEBP"),
    picture("a TIFF called PNG", "a.png", encoded("TIFF"), "a.png is not a JPEG, PNG or WEBP"),
    picture("a program in PostScript called JPEG", "a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9, "is not a JPEG, PNG"),
    picture("another extension", "a.bmp", encoded("BMP"), "no picture found"),
    picture("a truncated JPEG", "a.jpg", encoded("JPEG")[:-60], "damaged or cut off"),
    picture("a truncated PNG", "a.png", encoded("PNG")[:-20], "damaged or cut off"),
    picture("a truncated WEBP", "a.webp", encoded("WEBP")[:-10], "a.webp"),
    picture("a CMYK JPEG cut short", "a.jpg", encoded("JPEG", "CMYK")[:-60], "damaged or cut off"),
    picture("16 bits with too few pixels", "a.png", png(64, 64, b"\0" * 99, depth=16), "damaged or cut off"),
    picture("a depth no PNG has", "a.png", png(8, 8, b"\0" * 999, depth=7), "a.png"),
    picture("a colour type no PNG has", "a.png", png(8, 8, b"\0" * 999, colour=5), "a.png"),
    picture("a PNG without width", "a.png", png(0, 5, b""), "a.png"),
    picture("a bomb: 2.5 gigapixels in a kilobyte", "a.png", png(50_000, 50_000, b"\0" * 10**6), "megapixels"),
    picture("sides no memory holds", "a.png", png(2**31 - 1, 2**31 - 1, b""), "megapixels"),
    picture("a hundred megapixels, and a row", "a.png", png(10_001, 10_000, b""), "megapixels"),
    picture("an animated PNG", "a.png", moving("PNG"), "is animated"),
    picture("an animated WEBP", "a.webp", moving("WEBP"), "is animated"),
    picture(
        "a bomb in a text chunk",
        "a.png",
        png(8, 8, b"\0" * 999, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70_000_000)))),
        "a.png is damaged or cut off",
    ),
    picture("a colour profile cut short", "a.png", png(8, 8, b"", extra=chunk(b"iCCP", b"x")), "a.png"),
    Bad("picture: a terabyte with nothing in it", sparse, INIT, 2, "the limit is 100 MB"),
    Bad("picture: a pipe nobody writes to", pipe, INIT, 2, "pipe, socket or device"),
    Bad("picture: a folder called a.png", folder_called_picture, INIT, 2, "a folder inside the folder"),
    Bad("picture: a link to itself", link_in_a_circle, INIT, 2, "a.png"),
    Bad("picture: a link to nothing", link_to_nothing, INIT, 2, "does not exist"),
)


# --- projects and their manifests -------------------------------------------------------------------------------------

MANIFEST = """\
schema = 1
[concept]
name = "felix"
category = "cat"
token = "<felix>"
images = "images"
[base]
model = "tiny"
"""


def project(place: Path, manifest: str | bytes = MANIFEST) -> Path:
    """A project `p` with one picture."""
    root = place / "p"
    (root / "images").mkdir(parents=True)
    shutil.copy(next(iter(sorted((EXAMPLE / "cat").iterdir()))), root / "images" / "one.png")
    (root / "attnbooth.toml").write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    return root


def manifest(name: str, text: str | bytes, says: str) -> Bad:
    return Bad(f"manifest: {name}", partial(project, manifest=text), ("train", "PLACE/p", "--dry-run"), 2, says)


def train(lines: str) -> str:
    return f"{MANIFEST}[train]\n{lines}\n"


def concept(key: str, value: str) -> str:
    """The manifest with another value, in TOML, for a key of `[concept]`."""
    kept = [line for line in MANIFEST.splitlines() if not line.startswith(f"{key} =")]
    kept.insert(kept.index("[concept]") + 1, f"{key} = {value}")
    return "\n".join(kept)


MANIFESTS = (
    manifest("nothing in it", "", "is missing"),
    manifest("not TOML", "this is: yaml", "is not valid TOML"),
    manifest("JSON", '{"schema": 1}', "is not valid TOML"),
    manifest("binary", bytes(range(256)) * 9, "is not valid TOML"),
    manifest("UTF-16", MANIFEST.encode("utf-16"), "is not valid TOML"),
    manifest("two megabytes", MANIFEST + "#" * 2_000_000, "larger than 1 MB"),
    manifest("nested ten thousand deep", f"x = {'[' * 10_000}{']' * 10_000}", "nested too deeply"),
    manifest("tables nested ten thousand deep", f"[{'a.' * 10_000}a]", "a"),
    manifest("a key twice", MANIFEST.replace("[base]", 'name = "x"\n[base]'), "is not valid TOML"),
    manifest("a newer schema", MANIFEST.replace("schema = 1", "schema = 2"), "schema 2; this attnbooth reads up to 1"),
    manifest("a schema of five thousand digits", f"schema = {'9' * 5000}", "is not valid TOML"),
    manifest("a schema of a hundred thousand bits", f"schema = 0x{'f' * 25_000}", "schema"),
    manifest("a schema that is text", MANIFEST.replace("= 1", '= "one"'), "schema (line 1)"),
    manifest("an unknown key", train("sede = 1"), "unknown key train.sede (line 10), did you mean seed?"),
    manifest("an unknown key with an escape code", train('"\\u001b[2Jx" = 1'), "unknown key train."),
    manifest("an unknown key over two lines", train('"a\\nb" = 1'), "unknown key train."),
    manifest("a thousand unknown keys", train("\n".join(f"x{n} = 1" for n in range(1000))), "unknown key train.x0"),
    manifest("text for a number", train('seed = "1"'), "train.seed (line 10)"),
    manifest("a table for a number", train("seed = {a = 1}"), "train.seed (line 10)"),
    manifest("a date for a number", train("seed = 1979-05-27"), "train.seed (line 10)"),
    manifest("a number for a table", MANIFEST.replace('[base]\nmodel = "tiny"', "base = 1"), "base"),
    manifest("a learning rate that is NaN", train("[train.unet]\nlearning_rate = nan"), "train.unet.learning_rate"),
    manifest("a weight that is infinite", train("[train.unet]\nmean_weight = inf"), "train.unet.mean_weight"),
    manifest("minus one step", train("[train.unet]\nsteps = -1"), "train.unet.steps (line 11)"),
    manifest("steps of a hundred thousand bits", train(f"[train.unet]\nsteps = 0x{'f' * 25_000}"), "train.unet.steps"),
    manifest("minus so many", train(f"[train.unet]\nsteps = -{'9' * 4000}"), "train.unet.steps"),
    manifest("a seed beyond 64 bits", train(f"seed = {2**70}"), "train.seed (line 10)"),
    manifest("a resolution no memory holds", train("resolution = 1000000000"), "train.resolution (line 10)"),
    manifest("a megabyte of text for a number", train(f'seed = "{"x" * 900_000}"'), "train.seed (line 10)"),
    manifest("a name of a megabyte", concept("name", f'"{"x" * 900_000}"'), "concept.name"),
    manifest("pictures from elsewhere", concept("images", '"../../etc"'), "concept.images"),
    manifest("pictures from the root", concept("images", '"/etc"'), "concept.images"),
    manifest("pictures from a Windows share", concept("images", r'"\\\\host\\share"'), "concept.images"),
    manifest("a NUL in a path", concept("images", r'"a\u0000b"'), "concept.images"),
    manifest("a picture folder that is a file", concept("images", '"attnbooth.toml"'), "does not exist"),
    manifest("a token with an escape code", concept("token", r'"<\u001b[2J>"'), "concept.token"),
    manifest("a token of the text encoder", concept("token", '"<|endoftext|>"'), "concept.token"),
    manifest("a category with a slash", concept("category", '"../cat"'), "concept.category"),
    manifest("a base model with a NUL", MANIFEST.replace('"tiny"', r'"a\u0000b"'), "is no base model"),
)


def manifest_that_is(what: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        path = project(place) / "attnbooth.toml"
        path.unlink()
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        else:
            (place / "elsewhere.toml").write_text(MANIFEST, encoding="utf-8")
            path.symlink_to(place / "elsewhere.toml")

    return make


MANIFESTS_OF_OTHER_KINDS = (
    Bad("manifest: a pipe", manifest_that_is("pipe"), ("status", "PLACE/p"), 2, "is not a file"),
    Bad("manifest: a folder", manifest_that_is("folder"), ("status", "PLACE/p"), 2, "is not a file"),
)


# --- prompt files -----------------------------------------------------------------------------------------------------


def prompts(name: str, data: bytes, says: str) -> Bad:
    def make(place: Path) -> None:
        project(place)
        (place / "prompts.txt").write_bytes(data)

    return Bad(f"prompts: {name}", make, ("generate", "PLACE/p", "--prompts", "PLACE/prompts.txt"), 2, says)


def prompt_folder(place: Path) -> None:
    project(place)
    (place / "prompts.txt").mkdir()


PROMPTS = (
    prompts("an empty file", b"", "holds no prompt"),
    prompts("comments only", b"# a\n\n   # b\n", "holds no prompt"),
    prompts("binary", bytes(range(256)), "is not UTF-8 text"),
    prompts("Latin-1", "ein Photo für {}\n".encode("latin-1"), "is not UTF-8 text"),
    prompts("UTF-16", "a photo of a {}\n".encode("utf-16"), "is not UTF-8 text"),
    prompts("eleven megabytes", b"a {}\n" * 2_200_000, "more than 10 million characters"),
    prompts("more prompts than one call makes", b"a {}\n" * 200_000, "200000 pictures are too many"),
    Bad(
        "prompts: an endless device",
        project,
        ("generate", "PLACE/p", "--prompts", "/dev/zero"),
        2,
        "more than 10 million characters",
    ),
    Bad(
        "prompts: a folder",
        prompt_folder,
        ("generate", "PLACE/p", "--prompts", "PLACE/prompts.txt"),
        2,
        "prompts.txt",
    ),
)


# --- base models ------------------------------------------------------------------------------------------------------


def model(place: Path, changes: dict[str, bytes | None] | None = None) -> Path:
    """A folder `model`, the bundled one with some files changed or, with None, missing."""
    folder = place / "model"
    shutil.copytree(TINY, folder)
    for name, data in (changes or {}).items():
        path = folder / name
        path.unlink(missing_ok=True)
        if data is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    return folder


def edited(name: str, **changes: Any) -> dict[str, bytes | None]:
    """One of the bundled model's JSON files with other values."""
    document = json.loads((TINY / name).read_text(encoding="utf-8"))
    return {name: json.dumps({**document, **changes}).encode()}


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with just this header, which may say another length of itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def base(name: str, changes: dict[str, bytes | None], code: int, says: str) -> Bad:
    def make(place: Path) -> None:
        project(place, MANIFEST.replace('"tiny"', json.dumps(str(model(place, changes)))))

    return Bad(f"base model: {name}", make, ("train", "PLACE/p", *ONE_STEP), code, says)


UNET, ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"

BASES = (
    base("without its index", {"model_index.json": None}, 2, "it has no model_index.json"),
    base("an index that is not JSON", {"model_index.json": b"{"}, 2, "is not valid JSON"),
    base("an index nested too deep", {"model_index.json": b"[" * 100_000}, 2, "is not valid JSON"),
    base("an index that is a list", {"model_index.json": b"[]"}, 2, "is not a JSON object"),
    base("a pipeline with its own code", edited("model_index.json", _class_name=["evil", "Evil"]), 2, "never run"),
    base("a U-Net with its own code", edited("model_index.json", unet=["evil", "Evil"]), 2, "never run"),
    base(
        "a pipeline called a scheduler",
        edited("model_index.json", scheduler=["diffusers", "DiffusionPipeline"]),
        2,
        "whose scheduler is a DiffusionPipeline",
    ),
    base("a VAE's settings missing", {"vae/config.json": None}, 2, "vae/config.json is missing"),
    base("a U-Net's settings damaged", {"unet/config.json": b"\xff\xfe"}, 2, "is not valid JSON"),
    base("a U-Net with settings of no kind", edited("unet/config.json", block_out_channels="wide"), 2, "model"),
    base("channels that are a list", edited("unet/config.json", in_channels=[4]), 2, "channels"),
    base("a text encoder's settings damaged", {"text_encoder/config.json": b"{"}, 5, "cannot be read"),
    base("a text encoder of another width", edited("text_encoder/config.json", hidden_size=64), 2, "does not fit"),
    base("without a tokenizer", {"tokenizer/tokenizer.json": None}, 2, "tokenizer is missing"),
    base("a damaged tokenizer", {"tokenizer/tokenizer.json": b"{"}, 5, "tokenizer of"),
    base("a tokenizer of another shape", {"tokenizer/tokenizer.json": b"[1, 2]"}, 5, "tokenizer of"),
    base("weights missing", {UNET: None}, 2, "has no weights"),
    base("weights empty", {UNET: b""}, 2, "is empty"),
    base("weights that are text", {UNET: b"version https://git-lfs.github.com/spec/v1\n"}, 5, "cannot be read"),
    base(
        "weights of another shape",
        {VAE: safetensors({"encoder.conv_in.weight": entry("F32", [1], 0, 4)}, bytes(4))},
        2,
        "model",
    ),
    base("weights without a tensor", {ENCODER: safetensors({})}, 2, "text encoder"),
    base("a header longer than its file", {UNET: safetensors({}, length=2**62)}, 5, "cannot be read"),
    base("a header of the wrong bounds", {UNET: safetensors({"a": entry("F32", [9], 0, 10**15)})}, 5, "cannot be read"),
    base("a scheduler damaged", {"scheduler/scheduler_config.json": b"{"}, 2, "is not valid JSON"),
    base("a scheduler of no kind", edited("scheduler/scheduler_config.json", num_train_timesteps="many"), 2, "model"),
)


def single_file(name: str, file: str, data: bytes, says: str) -> Bad:
    def make(place: Path) -> None:
        path = place / file
        path.write_bytes(data)
        project(place, MANIFEST.replace('"tiny"', json.dumps(str(path))))

    return Bad(f"single file: {name}", make, ("train", "PLACE/p", *ONE_STEP), 2, says)


SINGLE_FILES = (
    single_file("zero bytes", "m.safetensors", b"", "header is cut short"),
    single_file("text", "m.safetensors", b"<!DOCTYPE html><html>404</html>" * 9, "header is cut short or too long"),
    single_file("a header that lies of its length", "m.safetensors", safetensors({}, length=2**63), "cut short or too"),
    single_file("a header that is no JSON", "m.safetensors", safetensors(b"nonsense"), "is not valid JSON"),
    single_file("a header nested too deep", "m.safetensors", safetensors(b"[" * 100_000), "is not valid JSON"),
    single_file(
        "less data than the header says", "m.safetensors", safetensors({"a": entry("F32", [9], 0, 36)}), "damaged"
    ),
    single_file("sizes below zero", "m.safetensors", safetensors({"a": entry("F32", [-1], 0, 4)}), "malformed"),
    single_file(
        "an embedding", "m.safetensors", safetensors({"<x>": entry("F32", [1, 1], 0, 4)}, bytes(4)), "embedding"
    ),
    single_file("text of another kind", "m.txt", b"hello", "m.txt"),
)

TABLE = (*PICTURES, *MANIFESTS, *MANIFESTS_OF_OTHER_KINDS, *PROMPTS, *BASES, *SINGLE_FILES)
