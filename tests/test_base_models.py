"""Base-model references: what each means, what is refused, and every way the hub can fail."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbooth_cli.engine import base_models, hub, model_files
from attnbooth_cli.engine.base_models import resolve, resolve_judge
from attnbooth_cli.engine.catalogue import DEFAULT_MODEL, STABLE_DIFFUSION, STABLE_DIFFUSION_1, TINY, WITHDRAWN
from attnbooth_cli.engine.identify import FileKind, identify_file
from attnbooth_cli.errors import BaseModelError, BoothError, InputError, ResourceError
from tests.fake_hub import TOKEN, FakeHub, Mode, fake_hub

OLD = "stabilityai/stable-diffusion-2-1-base"
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.8.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNET: dict[str, Any] = {"in_channels": 4, "sample_size": 64}
CLIP = {"model_type": "clip"}


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def texts(
    index: dict[str, Any] = INDEX, unet: dict[str, Any] = UNET, scheduler: dict[str, Any] | None = None
) -> dict[str, bytes]:
    return {
        "model_index.json": encode(index),
        "scheduler/scheduler_config.json": encode(scheduler or {"prediction_type": "epsilon"}),
        "text_encoder/config.json": encode({"model_type": "clip_text_model"}),
        "tokenizer/merges.txt": b"#version\n",
        "tokenizer/vocab.json": b"{}",
        "unet/config.json": encode(unet),
        "vae/config.json": encode({"block_out_channels": [1, 2, 3, 4]}),
    }


def weights(suffix: str = "safetensors", variant: str = "") -> dict[str, bytes]:
    stems = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    return {f"{part}/{stem}{variant}.{suffix}": part.encode() * 400 for part, stem in stems.items()}


def clutter() -> dict[str, bytes]:
    """What a published pipeline holds besides: all of it must stay where it is."""
    return {
        "README.md": b"# card",
        "v2-1_512-ema-pruned.ckpt": b"pickle",
        "v2-1_512-ema-pruned.safetensors": b"x" * 5000,
        "feature_extractor/preprocessor_config.json": b"{}",
        "safety_checker/config.json": b"{}",
        "safety_checker/model.safetensors": b"x",
        "text_encoder/pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
        "unet/diffusion_pytorch_model.non_ema.safetensors": b"x",
        "vae/diffusion_pytorch_model.bin": b"pickle",
    }


def pipeline() -> dict[str, bytes]:
    return texts() | weights()


def judge(suffix: str = "safetensors") -> dict[str, bytes]:
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    files = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    return {"config.json": encode(CLIP), name: b"w" * 100, "flax_model.msgpack": b"x"} | dict.fromkeys(files, b"{}")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def safetensors(path: Path, shapes: dict[str, list[int]], metadata: dict[str, str] | None = None) -> Path:
    """A well-formed file with zero-sized tensors' worth of data: only the header is ever read."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    header |= {name: {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = encode(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


@pytest.fixture(name="web")
def online(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The fake hub as this process's hub, with an empty cache. (The library reads its environment at import.)"""
    from huggingface_hub import constants

    server.reset()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library's waits between attempts
    return server


@pytest.fixture
def go_offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refused(kind: type[BoothError], *words: str, ref: str, **options: Any) -> BoothError:
    """Resolves `ref`, which must fail as `kind` with all `words` in message and hint."""
    with pytest.raises(kind) as caught:
        resolve(ref, **options)
    assert type(caught.value).exit_code == kind.exit_code
    told = f"{caught.value.message}\n{caught.value.hint}".lower()
    assert caught.value.hint
    assert [word for word in words if word.lower() not in told] == []
    return caught.value


# --- references -------------------------------------------------------------------------------------------------------


def test_tiny_is_the_bundled_model() -> None:
    model = resolve("tiny")
    assert (model.kind, model.family, model.entry, model.resolution) == ("bundled", "stable-diffusion", TINY, 64)
    assert (model.path, model.revision, model.prediction_type) == (base_models.bundled_folder(), None, "epsilon")
    assert resolve_judge("tiny") == model.path


@pytest.mark.parametrize(
    ("size", "prediction"), [(96, "v_prediction"), (64, "epsilon"), (8, "epsilon")], ids=["768-v", "512", "64"]
)
def test_folder_says_resolution_and_prediction(tmp_path: Path, size: int, prediction: str) -> None:
    files = texts(unet=UNET | {"sample_size": size}, scheduler={"prediction_type": prediction}) | weights()
    model = resolve(str(write(tmp_path / "base", files)))
    assert (model.kind, model.entry, model.variant) == ("folder", STABLE_DIFFUSION, None)
    assert (model.resolution, model.prediction_type) == (size * 8, prediction)


def test_a_prediction_the_losses_do_not_know_is_refused(tmp_path: Path) -> None:
    files = texts(scheduler={"prediction_type": "sample"}) | weights()
    with pytest.raises(InputError, match="'sample'"):
        resolve(str(write(tmp_path / "base", files)))


def test_folder_with_half_precision_only(tmp_path: Path) -> None:
    folder = write(tmp_path / "base", texts() | weights(variant=".fp16"))
    assert resolve(str(folder)).variant == "fp16"


def test_folder_that_says_no_size_gets_the_default(tmp_path: Path) -> None:
    folder = write(tmp_path, texts(unet={"in_channels": 4}) | weights())
    assert resolve(str(folder)).resolution == 512


def test_relative_folder_goes_before_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "me" / "base", pipeline())
    monkeypatch.chdir(tmp_path)
    assert resolve("me/base").path == tmp_path / "me" / "base"


@pytest.mark.parametrize("ref", ["./nothing", "../x/y", "/no/where", "~/no-such-model", "a/b/c", "nothing.safetensors"])
def test_missing_path(ref: str) -> None:
    assert refused(BaseModelError, "no base model at", "--model", "tiny", ref=ref).exit_code == 7


def test_unknown_word_suggests_the_nearest() -> None:
    refused(BaseModelError, "'tinny'", "did you mean `tiny`", ref="tinny")
    assert "did you mean" not in (refused(BaseModelError, "owner/name", ref="stable-diffusion").hint or "")
    refused(BaseModelError, "hub id", ref="owner/na me")
    refused(InputError, "no base model", ref="")


# --- folders that are refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("StableDiffusionXLInpaintPipeline", "XL inpainting"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("FluxPipeline", "FLUX"),
        ("StableDiffusionInpaintPipeline", "inpainting"),
        ("StableDiffusionUpscalePipeline", "upscaler"),
        ("StableDiffusionLatentUpscalePipeline", "upscaler"),
        ("StableDiffusionDepth2ImgPipeline", "depth"),
        ("StableDiffusionInstructPix2PixPipeline", "instruction"),
        ("StableDiffusionControlNetPipeline", "ControlNet"),
        ("PixArtAlphaPipeline", "PixArtAlphaPipeline"),
    ],
)
def test_unsupported_pipelines_are_named(tmp_path: Path, name: str, word: str) -> None:
    folder = write(tmp_path, texts(index=INDEX | {"_class_name": name}) | weights())
    refused(InputError, word, "1.x and 2.x", str(folder), ref=str(folder))


@pytest.mark.parametrize(
    ("channels", "word"), [(9, "inpainting"), (7, "upscaler"), (8, "editing"), (5, "depth"), (3, "3")]
)
def test_unsupported_unets_are_named(tmp_path: Path, channels: int, word: str) -> None:
    folder = write(tmp_path, texts(unet={"in_channels": channels}) | weights())
    refused(InputError, word, "supported", ref=str(folder))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, "never run"),
        ({"unet": ["my_unet", "MyUNet"]}, "never run"),
        ({"_class_name": None}, "no pipeline class"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
        ({"unet": None}, "names no unet"),
        ({"unet": [None, None]}, "names no unet"),
    ],
)
def test_strange_indices(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    folder = write(tmp_path, texts(index=INDEX | change) | weights())
    refused(InputError, word, ref=str(folder))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'"' + b"x" * 4_000_001])
def test_broken_index(tmp_path: Path, data: bytes) -> None:
    folder = write(tmp_path, pipeline() | {"model_index.json": data})
    with pytest.raises(InputError, match=r"model_index\.json"):
        resolve(str(folder))


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae", "model_index.json"])
def test_links_out_of_a_folder_are_refused_and_those_of_a_cache_are_not(tmp_path: Path, name: str) -> None:
    for root, place, refuses in (
        (tmp_path / "a" / "model", tmp_path / "elsewhere", True),
        (tmp_path / "b" / "model", tmp_path / "b" / "model" / "inside", False),
        (tmp_path / "c" / "snapshots" / "1", tmp_path / "c" / "blobs" / "1", False),
        (tmp_path / "d" / "snapshots" / "1", tmp_path / "d" / "others", True),
    ):
        write(root, pipeline())
        place.parent.mkdir(parents=True, exist_ok=True)
        (root / name).rename(place)
        (root / name).symlink_to(place)
        if refuses:
            refused(InputError, "leads out of", ref=str(root))
        else:
            assert resolve(str(root)).path == root


def test_incomplete_folders(tmp_path: Path) -> None:
    refused(InputError, "no model_index.json", ref=str(write(tmp_path / "a", {"x.txt": b""})))
    files = pipeline()
    del files["tokenizer/vocab.json"]
    refused(InputError, "tokenizer", ref=str(write(tmp_path / "b", files)))
    files = pipeline()
    del files["unet/config.json"]
    refused(InputError, "config.json is missing", ref=str(write(tmp_path / "c", files)))
    with pytest.raises(InputError, match="no weights"):
        resolve(str(write(tmp_path / "d", texts())))
    strange = texts(scheduler={"prediction_type": "flow"}) | weights()
    refused(InputError, "'flow'", ref=str(write(tmp_path / "e", strange)))


def test_pickles_in_a_folder_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, texts() | weights(suffix="bin"))
    refused(InputError, "pickles", "never loaded", "safe_serialization", ref=str(folder))


def test_pick_weights_prefers_full_precision_and_whole_sets() -> None:
    stem = "diffusion_pytorch_model"
    both = [f"{stem}.fp16.safetensors", f"{stem}.safetensors", f"{stem}.non_ema.safetensors", f"{stem}.bin"]
    assert model_files.pick_weights(stem, both) == model_files.Weights((f"{stem}.safetensors",))
    assert model_files.pick_weights(stem, both[:1]) == model_files.Weights((f"{stem}.fp16.safetensors",), "fp16")
    assert model_files.pick_weights(stem, [f"{stem}.non_ema.safetensors", f"{stem}.bin"]) is None
    shards = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = f"{stem}.safetensors.index.json"
    assert model_files.pick_weights(stem, [*shards, index]) == model_files.Weights((index, *shards))
    assert model_files.pick_weights(stem, [shards[0], index]) is None
    assert model_files.pick_weights(stem, shards) is None
    for half in (f"{stem}-00001-of-00001.fp16.safetensors", f"{stem}.fp16-00001-of-00001.safetensors"):
        picked = model_files.pick_weights(stem, [half, f"{stem}.safetensors.index.fp16.json"])
        assert picked is not None
        assert picked.variant == "fp16"


# --- single files -----------------------------------------------------------------------------------------------------

LDM = {"model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3], "first_stage_model.decoder.conv_in.bias": [1]}
SD1 = LDM | {"cond_stage_model.transformer.text_model.x": [1]}
SD2 = LDM | {"cond_stage_model.model.x": [1]}


def test_single_files_are_told_apart(tmp_path: Path) -> None:
    assert identify_file(safetensors(tmp_path / "a.safetensors", SD1)) == FileKind(1)
    spec = {"modelspec.prediction_type": "v", "modelspec.resolution": "768x768"}
    told = identify_file(safetensors(tmp_path / "b.safetensors", SD2, spec))
    assert told == FileKind(2, "v_prediction", 768)
    odd = {"modelspec.prediction_type": "?", "modelspec.resolution": "huge"}
    assert identify_file(safetensors(tmp_path / "c.safetensors", SD2, odd)) == FileKind(2)


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        (LDM | {"conditioner.embedders.0.x": [1]}, "Stable Diffusion XL"),
        (SD1 | {"model.diffusion_model.input_blocks.0.0.weight": [320, 9, 3, 3]}, "inpainting"),
        (SD1 | {"model.diffusion_model.input_blocks.0.0.weight": [320, 8, 3, 3]}, "editing"),
        (SD1 | {"model.diffusion_model.input_blocks.0.0.weight": [4]}, "does not know"),
        ({"model.diffusion_model.joint_blocks.0.x": [1]}, "Stable Diffusion 3"),
        ({"double_blocks.0.x": [1]}, "FLUX"),
        ({"lora_unet_x.lora_down.weight": [4, 4]}, "LoRA"),
        ({"unet.x.lora_A.weight": [4, 4]}, "LoRA"),
        ({"emb_params": [2, 768]}, "embedding"),
        ({"<my-cat>": [1, 1024]}, "embedding"),
        ({"control_model.x": [1], "y": [1]}, "ControlNet"),
        ({"conv_in.weight": [320, 4, 3, 3], "conv_out.bias": [4]}, "U-Net without"),
        ({"decoder.conv_in.weight": [320, 4, 3, 3], "encoder.x": [4]}, "a VAE"),
        ({"bert.x": [4, 4, 4]}, "no checkpoint"),
        ({}, "no checkpoint"),
        ({key: LDM[key] for key in LDM}, "without its text encoder"),
        ({key: SD1[key] for key in SD1 if "first_stage" not in key}, "without its VAE"),
    ],
)
def test_other_single_files_are_named(tmp_path: Path, shapes: dict[str, list[int]], word: str) -> None:
    path = safetensors(tmp_path / "a.safetensors", shapes)
    refused(InputError, word, "1.x and 2.x", ref=str(path))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth", ".CKPT"])
def test_pickle_files_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04")
    refused(InputError, "pickle", "never loaded", ref=str(path))


def header(document: Any, extra: int = 0) -> bytes:
    text = document if isinstance(document, bytes) else encode(document)
    return struct.pack("<Q", len(text)) + text + b"\0" * extra


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x10\0\0",
        struct.pack("<Q", 0) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 500) + b"{}",
        header(b"{not json"),
        header(b"[]"),
        header(b"\xff\xff"),
        header({"x": 3}),
        header({"x": {"shape": [1]}}),
        header({"x": {"shape": [-1], "data_offsets": [0, 1]}}, 1),
        header({"x": {"shape": [True], "data_offsets": [0, 1]}}, 1),
        header({"x": {"shape": [1], "data_offsets": [0]}}),
        header({"x": {"shape": [9], "data_offsets": [0, 9]}}, 8),
        header({"x": {"shape": [9], "data_offsets": [0, 9]}}, 10),
        b"<html>Not found</html>",
    ],
)
def test_malformed_safetensors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    refused(InputError, str(path), "get the file again", ref=str(path))


def test_text_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"x")
    refused(InputError, "not a .safetensors", ref=str(path))


@pytest.mark.parametrize("place", ["a", "config"])
def test_single_file_uses_the_configuration_beside_it(tmp_path: Path, web: FakeHub, place: str) -> None:
    write(tmp_path / place, texts(scheduler={"prediction_type": "v_prediction"}))
    model = resolve(str(safetensors(tmp_path / "a.safetensors", SD2)), download=True)
    assert (model.kind, model.config, model.revision) == ("file", tmp_path / place, None)
    assert (model.resolution, model.prediction_type) == (512, "v_prediction")
    assert web.requests == []


@pytest.mark.parametrize(("shapes", "repository"), [(SD1, STABLE_DIFFUSION_1), (SD2, DEFAULT_MODEL)])
def test_single_file_fetches_the_configuration_once(
    tmp_path: Path, web: FakeHub, shapes: dict[str, list[int]], repository: str
) -> None:
    path = safetensors(tmp_path / "a.safetensors", shapes, {"modelspec.prediction_type": "v"})
    assert refused(BaseModelError, repository, "attnbooth init", ref=str(path)).exit_code == 7
    web.add(repository, pipeline() | clutter())
    model = resolve(str(path), download=True)
    assert model.config is not None
    assert model_files.has_configs(model.config)
    assert model.prediction_type == "v_prediction"
    assert not [name for name in web.paths() if name.endswith((".safetensors", ".bin", ".ckpt"))]
    web.requests.clear()
    assert resolve(str(path)) == model
    assert resolve(str(path), download=True) == model
    assert web.requests == []


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_only_what_the_pipeline_needs_is_downloaded(web: FakeHub) -> None:
    commit = web.add(DEFAULT_MODEL, pipeline() | clutter())
    assert hub.pin(DEFAULT_MODEL) == commit
    web.requests.clear()
    told: list[str] = []
    model = resolve(DEFAULT_MODEL, download=True, say=told.append)
    assert (model.kind, model.ref, model.revision, model.path.name) == ("hub", DEFAULT_MODEL, commit, commit)
    assert (model.entry, model.resolution, model.variant) == (STABLE_DIFFUSION, 512, None)
    on_disk = {str(path.relative_to(model.path)) for path in model.path.rglob("*") if path.is_file()}
    assert on_disk == set(pipeline())
    assert all((model.path / name).read_bytes() == data for name, data in pipeline().items())
    files = [path.split("/resolve/")[1].split("/", 1)[1] for path in web.paths("GET") if "/resolve/" in path]
    assert sorted(files) == sorted(pipeline())
    assert len(web.requests) == 1 + 2 * len(pipeline())  # one listing, then HEAD and GET for each file
    assert len(told) == 1
    assert told[0].startswith(f"downloading {DEFAULT_MODEL} at {commit[:7]}, 8 kB, to ")


def test_pinned_and_cached_needs_no_network(web: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    web.add(DEFAULT_MODEL, pipeline())
    model = resolve(DEFAULT_MODEL, download=True)
    web.requests.clear()
    monkeypatch.setattr(socket, "socket", None)
    told: list[str] = []
    assert resolve(DEFAULT_MODEL, revision=model.revision, download=True, say=told.append) == model
    assert resolve(DEFAULT_MODEL, revision=model.revision) == model
    assert resolve(DEFAULT_MODEL, revision=(model.revision or "")[:7]) == model
    assert resolve(DEFAULT_MODEL) == model
    assert (web.requests, told) == ([], [])


def test_offline_works_from_the_cache(web: FakeHub, go_offline: Any) -> None:
    web.add(DEFAULT_MODEL, pipeline())
    model = resolve(DEFAULT_MODEL, download=True)
    web.requests.clear()
    go_offline()
    assert resolve(DEFAULT_MODEL, download=True) == model
    assert web.requests == []


def test_not_cached(web: FakeHub, go_offline: Any) -> None:
    web.add(DEFAULT_MODEL, pipeline())
    error = refused(BaseModelError, "not complete in the cache", "attnbooth init", "tiny", ref=DEFAULT_MODEL)
    assert error.exit_code == 7
    go_offline()
    refused(BaseModelError, "HF_HUB_OFFLINE is set", "a" * 12, ref=DEFAULT_MODEL, revision="a" * 40, download=True)
    with pytest.raises(BaseModelError, match="HF_HUB_OFFLINE"):
        hub.pin(DEFAULT_MODEL)
    assert web.requests == []


def test_a_partly_cached_model_does_not_count(web: FakeHub) -> None:
    web.add(DEFAULT_MODEL, pipeline())
    model = resolve(DEFAULT_MODEL, download=True)
    (model.path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    refused(BaseModelError, "not complete", ref=DEFAULT_MODEL, revision=model.revision)
    web.requests.clear()
    assert resolve(DEFAULT_MODEL, revision=model.revision, download=True) == model
    assert not [path for path in web.paths() if "unet" in path]


def test_sharded_and_half_precision_weights(web: FakeHub) -> None:
    stem = "unet/diffusion_pytorch_model"
    shards = {f"{stem}-0000{i}-of-00002.safetensors": b"s" for i in (1, 2)} | {f"{stem}.safetensors.index.json": b"{}"}
    files = texts() | weights() | shards
    del files[f"{stem}.safetensors"]
    web.add("a/sharded", files)
    folder = resolve("a/sharded", download=True).path
    assert all((folder / name).read_bytes() == data for name, data in shards.items())
    web.add("a/half", texts() | weights(variant=".fp16"))
    model = resolve("a/half", download=True)
    assert model.variant == "fp16"
    assert resolve("a/half", revision=model.revision, download=True) == model


def test_half_precision_left_by_another_tool_is_completed(web: FakeHub) -> None:
    commit = web.add("a/b", pipeline() | weights(variant=".fp16"))
    cache = model_files.cache_folder() / "models--a--b" / "snapshots" / commit
    write(cache, texts() | weights(variant=".fp16"))
    assert resolve("a/b", revision=commit).variant == "fp16"
    assert resolve("a/b", revision=commit, download=True).variant is None


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("missing", ("is not on the hub", "withdrawn", "--model", "HF_TOKEN")),
        ("gated", ("gated", "accept the licence", "HF_TOKEN", "/me/model")),
        ("unauthorized", ("401", "HF_TOKEN")),
        ("forbidden", ("403", "HF_TOKEN")),
        ("busy", ("429", "slow down", "again")),
        ("error", ("500", "in trouble", "again")),
        ("broken files", ("503", "in trouble", "again")),
        ("drop", ("interrupted", "again", "kept")),
        ("slow", ("cannot be reached", "HF_ENDPOINT")),
    ],
)
def test_failures_of_the_hub(web: FakeHub, monkeypatch: pytest.MonkeyPatch, mode: Mode, words: tuple[str, ...]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2 if mode == "slow" else 10)
    web.add("me/model", pipeline(), mode)
    error = refused(BaseModelError, "me/model" if mode != "slow" else "hub", *words, ref="me/model", download=True)
    assert error.exit_code == 7


def test_nothing_listens(web: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(BaseModelError, "cannot be reached", "HF_ENDPOINT", "tiny", ref="me/model", download=True)


def test_unknown_revision(web: FakeHub) -> None:
    web.add("me/model", pipeline())
    words = ("no revision v9", "attnbooth.toml")
    refused(BaseModelError, *words, ref="me/model", revision="v9", download=True)
    refused(BaseModelError, "no revision " + "b" * 40, ref="me/model", revision="b" * 40, download=True)
    refused(InputError, "not a revision", ref="me/model", revision="../../x", download=True)


def test_missing_stable_diffusion_2_names_mirrors(web: FakeHub) -> None:
    refused(BaseModelError, "November 2025", "Manojb/", "--model", ref=DEFAULT_MODEL, download=True)
    refused(BaseModelError, DEFAULT_MODEL, "Manojb/", ref="stabilityai/stable-diffusion-2", download=True)


def test_an_interrupted_download_continues(web: FakeHub) -> None:
    web.add("me/model", pipeline(), "drop")
    refused(BaseModelError, "interrupted", ref="me/model", download=True)
    web.repos["me/model"].mode = "ok"
    web.requests.clear()
    model = resolve("me/model", download=True)
    assert (model.path / "unet/diffusion_pytorch_model.safetensors").read_bytes() == b"unet" * 400
    assert not [path for path in web.paths() if path.endswith(".json")]  # they had arrived


def test_a_cached_copy_serves_when_the_hub_fails(web: FakeHub) -> None:
    web.add("me/model", pipeline())
    model = resolve("me/model", download=True)
    web.repos["me/model"].mode = "error"
    told: list[str] = []
    assert resolve("me/model", download=True, say=told.append) == model
    assert "HTTP 500" in told[0]
    assert "using the cached copy at" in told[0]


def test_token_opens_a_gated_model(web: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    web.add("me/model", pipeline(), "gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve("me/model", download=True).kind == "hub"


def test_pickles_are_neither_loaded_nor_asked_for(web: FakeHub) -> None:
    web.add("me/model", texts() | weights(suffix="bin") | {"model.ckpt": b"x"})
    words = ("pickle", "never loaded", "--model", "safe_serialization")
    assert refused(BaseModelError, *words, ref="me/model", download=True).exit_code == 7
    assert not [path for path in web.paths() if path.endswith((".bin", ".ckpt"))]


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (texts(index=INDEX | {"_class_name": "StableDiffusionXLPipeline"}) | weights(), "Stable Diffusion XL"),
        (texts(unet={"in_channels": 9}) | weights(), "inpainting"),
        ({"lora.safetensors": b"x"}, "no model_index.json"),
    ],
)
def test_unsupported_models_are_refused_before_their_weights_move(
    web: FakeHub, files: dict[str, bytes], word: str
) -> None:
    web.add("me/model", files)
    assert refused(InputError, word, ref="me/model", download=True).exit_code == 2
    assert not [path for path in web.paths() if path.endswith(".safetensors")]


def test_full_disk_is_refused_before_the_weights_move(web: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    web.add("me/model", pipeline())
    warnings = pytest.warns(UserWarning, match="free disk space")  # the library's own, for the text files
    monkeypatch.setattr("attnbooth_cli.engine.hub.durable.shutil.disk_usage", lambda path: type("U", (), {"free": 99}))
    with warnings:
        refused(ResourceError, "0.00 GB are free", "HF_HOME", ref="me/model", download=True)
    assert not [path for path in web.paths() if path.endswith(".safetensors")]


# --- withdrawn models -------------------------------------------------------------------------------------------------


def test_old_id_is_replaced_by_its_copy(web: FakeHub) -> None:
    commit = web.add(DEFAULT_MODEL, pipeline())
    told: list[str] = []
    model = resolve(OLD, download=True, say=told.append)
    assert (model.ref, model.revision) == (DEFAULT_MODEL, commit)
    assert "withdrawn from the hub in November 2025" in told[0]
    assert DEFAULT_MODEL in told[0]
    assert not [path for path in web.paths() if OLD in path]


def test_old_id_in_the_cache_is_used_offline(web: FakeHub, go_offline: Any) -> None:
    write(
        model_files.cache_folder() / "models--stabilityai--stable-diffusion-2-1-base" / "snapshots" / ("c" * 40),
        pipeline(),
    )
    for revision in (None, "c" * 40):
        told: list[str] = []
        model = resolve(OLD, revision=revision, say=told.append)
        assert (model.ref, model.revision) == (OLD, "c" * 40)
        assert "using your cached copy" in told[0]
    assert resolve(OLD, revision="c" * 40, download=True).ref == OLD
    go_offline()
    assert resolve(OLD, download=True).ref == OLD
    assert web.requests == []


def test_withdrawn_models_are_not_replaced_by_withdrawn_ones() -> None:
    assert not set(WITHDRAWN) & set(WITHDRAWN.values())
    assert DEFAULT_MODEL not in WITHDRAWN


# --- judges -----------------------------------------------------------------------------------------------------------


def test_judge_is_fetched_without_other_formats(web: FakeHub, go_offline: Any) -> None:
    commit = web.add("openai/clip", judge() | {"pytorch_model.bin": b"x", "tf_model.h5": b"x"})
    told: list[str] = []
    folder = resolve_judge("openai/clip", download=True, say=told.append)
    assert folder.name == commit
    assert {path.name for path in folder.iterdir()} == set(judge()) - {"flax_model.msgpack"}
    assert told[0].startswith(f"downloading openai/clip at {commit[:7]}")
    web.requests.clear()
    assert resolve_judge("openai/clip", commit, download=True) == folder
    assert resolve_judge("openai/clip") == folder
    go_offline()
    assert resolve_judge("openai/clip", download=True) == folder
    assert web.requests == []


def test_judge_of_pickles(web: FakeHub) -> None:
    web.add("openai/clip", judge("bin"))
    web.add_pull_request("openai/clip", 3, "stranger", judge())
    with pytest.raises(BaseModelError, match="pickle") as caught:
        resolve_judge("openai/clip", download=True)
    assert "--clip" in str(caught.value.hint)
    commit = web.add_pull_request("openai/clip", 8, "SFconvertbot", judge())
    told: list[str] = []
    assert resolve_judge("openai/clip", download=True, say=told.append).name == commit
    assert "refs/pr/8" in told[0]
    assert not [path for path in web.paths() if path.endswith(".bin")]
    assert resolve_judge("openai/clip").name == commit


def test_judge_failures(web: FakeHub, tmp_path: Path) -> None:
    for ref, kind, word in (("tinny", BaseModelError, "no judge"), ("./none", BaseModelError, "no folder")):
        with pytest.raises(kind, match=word):
            resolve_judge(ref)
    with pytest.raises(BaseModelError, match="not complete in the cache"):
        resolve_judge("openai/clip")
    with pytest.raises(BaseModelError, match="not on the hub"):
        resolve_judge("openai/clip", download=True)
    bert = write(tmp_path / "bert", judge() | {"config.json": encode({"model_type": "bert"})})
    with pytest.raises(InputError, match="'bert'"):
        resolve_judge(str(bert))
    with pytest.raises(InputError, match="pickles"):
        resolve_judge(str(write(tmp_path / "bin", judge("bin"))))
    good = write(tmp_path / "good", judge())
    assert resolve_judge(str(good)) == good


# --- the real environment ---------------------------------------------------------------------------------------------


def test_environment_is_honoured_and_nothing_heavy_is_imported(server: FakeHub, tmp_path: Path) -> None:
    server.reset()
    commit = server.add(DEFAULT_MODEL, pipeline(), "gated")
    program = (
        "import sys; from attnbooth_cli.engine import base_models\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        f"print(base_models.resolve({DEFAULT_MODEL!r}, download=True).path)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    source = str(Path(base_models.__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "PYTHONPATH": source}

    def run(**more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment | more, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    first = run()
    assert Path(first).is_relative_to(tmp_path / "hub")
    assert Path(first).name == commit
    server.requests.clear()
    assert run(HF_HUB_OFFLINE="1") == first
    assert server.requests == []
