"""Counts the work of a training step, of a run, of sampling and of starting: numbers that no other load on the machine
changes. `expected.json` holds them, and `test_counts.py` refuses more.

    python -m tests.performance.counts            # prints them
    python -m tests.performance.counts --write    # renews expected.json, after a change that means to change them
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

EXPECTED = Path(__file__).with_name("expected.json")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "typer", "pydantic")
BATCH = 2
STAGES = ("embedding", "attention", "unet")
SHORT_RUN = tuple(f"{stage}.{what}" for stage in STAGES for what in ("steps=2", f"batch_size={BATCH}"))
"""Settings of a whole run: six steps of two samples."""

Counts = dict[str, dict[str, int]]


class Calls(TorchDispatchMode):
    """Counts the operators that reach PyTorch's dispatcher, backward and optimiser included."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Saved:
    """Bytes kept for the backward pass, each storage once and weights not at all.

    Attributes:
        weights: Storages that are there anyway.
        storages: Bytes by address.
    """

    weights: set[int]
    storages: dict[int, int] = field(default_factory=dict)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextlib.contextmanager
def encodes() -> Iterator[dict[str, int]]:
    """Counts samples that go through the VAE's encoder and the text encoder during the block."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    found = {"vae_encodes": 0, "text_encodes": 0}
    encode, forward = AutoencoderKL.encode, CLIPTextModel.forward

    def counted_encode(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found["vae_encodes"] += len(x)
        return encode(self, x, *args, **kwargs)

    def counted_forward(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        found["text_encodes"] += len(input_ids)
        return forward(self, input_ids, *args, **kwargs)

    AutoencoderKL.encode, CLIPTextModel.forward = counted_encode, counted_forward
    try:
        yield found
    finally:
        AutoencoderKL.encode, CLIPTextModel.forward = encode, forward


def of_a_step(name: str) -> dict[str, int]:
    """The second step of a stage of the method on the bundled model: two samples, from picture to update."""
    from attnbooth_cli.engine.base_models import resolve
    from attnbooth_cli.engine.devices import make_accelerator
    from attnbooth_cli.engine.families import load_components
    from attnbooth_cli.engine.loop import run_stage
    from attnbooth_cli.engine.methods import ATTNDREAMBOOTH
    from tests.engine.conftest import make_source, make_subject

    components = load_components(resolve("tiny"))
    subject, source = make_subject(components), make_source(components)
    stage = replace(next(its for its in ATTNDREAMBOOTH.stages if its.name == name), steps=2, batch_size=BATCH)
    models = (components.unet, components.vae, components.text_encoders[0].model)
    saved = Saved({its.untyped_storage().data_ptr() for model in models for its in model.parameters()})
    flops, calls, marks = FlopCounterMode(display=False), Calls(), []

    def mark(_: object) -> None:
        marks.append((flops.get_total_flops(), calls.number, sum(saved.storages.values())))
        saved.storages.clear()

    accelerator = make_accelerator(torch.device("cpu"), "float32")
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda its: its), flops, calls:
        run_stage(stage, subject, source, accelerator, ATTNDREAMBOOTH.optimizer, after_step=mark)
    (flops_before, calls_before, _), (flops_after, calls_after, kept) = marks
    return {"flops": flops_after - flops_before, "calls": calls_after - calls_before, "saved_bytes": kept}


def of_a_run() -> dict[str, int]:
    """Encodes of a whole `train` with the settings `SHORT_RUN`, its samples and its measured trial included."""
    from attnbooth_cli.engine.preparation import TrainOptions
    from attnbooth_cli.engine.training import train
    from tests.conftest import example_project, quick

    with tempfile.TemporaryDirectory() as folder:
        root = example_project(Path(folder) / "toadstool")
        with encodes() as found, quick(trial_step=True):
            train(root, options=TrainOptions(settings=tuple(f"train.{its}" for its in SHORT_RUN)), report=False)
    return found


def of_sampling() -> dict[str, int]:
    """Twelve pictures of three prompts in batches of five, two steps."""
    from attnbooth_cli.engine.base_models import resolve
    from attnbooth_cli.engine.families import load_components
    from attnbooth_cli.engine.sampling import Request, SamplingSettings, sample

    components = load_components(resolve("tiny"))
    requests = [Request(f"a photo of a {word}", seed) for word in ("cat", "dog", "car") for seed in range(4)]
    with encodes() as found, FlopCounterMode(display=False) as flops, Calls() as calls:
        pictures = list(sample(components, requests, SamplingSettings(2, 4.0, 64, 64), batch_size=5))
    assert len(pictures) == len(requests)
    return {**found, "flops": flops.get_total_flops(), "calls": calls.number}


_HOOK = """
import atexit, json, sys
read = []
def heard(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and not (arguments[2] or 0) & 3:
        read.append(arguments[0])
def tell():
    data = [name for name in read if not name.endswith((".py", ".pyc", ".pth", ".so", ".zip"))]
    print(json.dumps({"modules": sorted(sys.modules), "files": data}), file=sys.__stderr__)
atexit.register(tell)
sys.addaudithook(heard)
import runpy
sys.argv = ["attnbooth", *sys.argv[1:]]
runpy.run_module("attnbooth_cli", run_name="__main__")
"""


@dataclass(frozen=True)
class Start:
    """What a command imported and which files beside Python's own modules it opened to read, each as often."""

    modules: list[str]
    files: list[str]

    @property
    def counts(self) -> dict[str, int]:
        return {"modules": len(self.modules), "files": len(self.files)}


def of_starting(*arguments: object) -> Start:
    """A command as a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-c", _HOOK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "LC_ALL": "C.UTF-8"})
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Start(**json.loads(done.stderr.splitlines()[-1]))


def starting() -> Counts:
    """Of `--help` and of `train --dry-run`."""
    from tests.conftest import example_project

    with tempfile.TemporaryDirectory() as folder:
        root = example_project(Path(folder) / "toadstool")
        return {"--help": of_starting("--help").counts, "--dry-run": of_starting("train", root, "--dry-run").counts}


def versions() -> dict[str, str]:
    """Of Python and the libraries, as far as they can change a count: without the last number."""
    found = {name: ".".join(importlib.metadata.version(name).split(".")[:2]) for name in LIBRARIES}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


def main() -> int:
    """The command."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        counts: Counts = {f"step {name}": of_a_step(name) for name in STAGES}
        counts |= {"run": of_a_run(), "sampling": of_sampling(), **starting()}
    document = json.dumps({"versions": versions(), "counts": counts}, indent=2) + "\n"
    if "--write" in sys.argv:
        EXPECTED.write_text(document, encoding="utf-8")
    print(document, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
