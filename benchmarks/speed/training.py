"""What a training step costs: python -m benchmarks.speed.training [--layout L] [--stage S] [--batch N] [--pool K]

Four ways to do one step of the same batch size on the same base model, in turn in one process, from picture to updated
weights:

ours       `loop.run_stage`, the regulariser on
reference  as in the authors' script: explicit probabilities in every attention layer, self-attention too, with a
           recorder that keeps them all; the prompt encoded and the pictures encoded anew at every step; AdamW tensor
           by tensor
plain      a DreamBooth step without regulariser, fused attention everywhere, pictures encoded anew, the prompt once
unet       the U-Net's part of `plain`: forward, backward, update

Prints medians of the ratios of neighbours, and a floor: the counted floating-point operations of the U-Net's part at
the rate of a large matrix product in the same process. `--peak WAY` prints instead the most memory that two steps of
that way hold above the loaded model; `--peaks` does so for ours and reference in processes of their own. `--peak
gradients` is our forward and backward pass alone, with gradient checkpointing if `--checkpointing` says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnbooth_cli.engine.attention import attention_probabilities, fused, project, project_out
from attnbooth_cli.engine.augmentation import AUGMENTATIONS
from attnbooth_cli.engine.conditioning import Subject, conditioning_of, recording
from attnbooth_cli.engine.data import LatentSource, load_pictures
from attnbooth_cli.engine.devices import make_accelerator, return_large_blocks
from attnbooth_cli.engine.families import FAMILIES
from attnbooth_cli.engine.loop import Progress, checkpointing, only_trainable, run_stage, trainable_parameters
from attnbooth_cli.engine.losses import attention_regularisation, diffusion_loss, diffusion_target, token_statistics
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH, AdamW, Stage
from attnbooth_cli.engine.objective import accumulate_gradients
from attnbooth_cli.engine.tokens import (
    add_placeholder,
    placeholder,
    placeholder_ids,
    recorded_positions,
    substituted_rows,
)
from benchmarks.memory import forget_peak, peak_bytes, resident_bytes
from benchmarks.speed.layouts import LAYOUTS, TOKENS, components_of, resolution_of

PICTURES = Path(__file__).parents[1] / "concepts" / "tuning" / "clock" / "images"
WAYS = ("ours", "reference", "plain", "unet")
GRADIENTS = "gradients"


@dataclass(frozen=True)
class Bench:
    """What all ways work on."""

    stage: Stage
    subject: Subject
    source: LatentSource
    accelerator: Any

    @property
    def unet(self) -> Any:
        """The one all ways train."""
        return self.subject.components.unet


def prepared(layout: str, stage_name: str, batch: int, pool: int) -> Bench:
    """A concept on a base model; the pool, where there is one, is encoded."""
    components = components_of(layout)
    concept = placeholder("<it>", 1, "cat")
    (encoder,) = components.text_encoders
    rows = nn.Parameter(add_placeholder(encoder.tokenizer, encoder.model, concept), requires_grad=False)
    subject = Subject(components, concept, rows, (concept.prompt("a photo of a {}"),))
    resolution = resolution_of(layout)
    pictures = load_pictures(sorted(PICTURES.iterdir()), resolution)
    augment = AUGMENTATIONS["published"]
    source = LatentSource(pictures, components.vae, 0, resolution, 1000, augment, pool)
    if pool:
        source.batch("pool", 0, range(pool), pool)
    (stage,) = (its for its in ATTNDREAMBOOTH.stages if its.name == stage_name)
    return Bench(replace(stage, batch_size=batch), subject, source, make_accelerator(torch.device("cpu"), "float32"))


def train(bench: Bench, steps: int, after: Callable[[float], None] = lambda _: None) -> None:
    """Our way; `after` is given the seconds of every step."""

    def after_step(progress: Progress) -> None:
        after(progress.seconds)

    stage = replace(bench.stage, steps=steps)
    run_stage(stage, bench.subject, bench.source, bench.accelerator, AdamW(), after_step=after_step)


def optimizer_of(bench: Bench, **options: Any) -> torch.optim.Optimizer:
    """Of the stage's parameters."""
    return torch.optim.AdamW(trainable_parameters(bench.subject, bench.stage).values(), lr=1e-9, **options)


def other_ways(bench: Bench) -> dict[str, Callable[[int], float]]:
    """The other ways' steps, from number to loss; gradients are on in `run_stage`, or see `trainable`."""
    components, stage = bench.subject.components, bench.stage
    (encoder,) = components.text_encoders
    ids = placeholder_ids(encoder.tokenizer, bench.subject.placeholder)
    columns = recorded_positions(encoder.tokenizer, bench.subject.placeholder, bench.subject.prompts[0], TOKENS)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    pooled = replace(bench.source, pool=0, _encoded={})
    embedding = stage.name == "embedding"

    def encoded() -> Tensor:
        with substituted_rows(encoder.model, ids, bench.subject.rows):
            return FAMILIES[components.family].encode(components, bench.subject.prompts)["encoder_hidden_states"]

    with torch.no_grad():
        once = encoded()

    def drawn(step: int) -> Any:
        pooled._encoded.clear()
        return pooled.batch(stage.name, step, range(stage.batch_size), stage.batch_size)

    def predicted(batch: Any, told: Tensor) -> Tensor:
        noisy = components.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = components.unet(noisy, batch.timesteps, told.expand(stage.batch_size, -1, -1), return_dict=False)
        target = diffusion_target(components.noise_scheduler, batch.latents, batch.noise, batch.timesteps)
        return diffusion_loss(prediction[0], target)

    def updated(way: str, loss: Tensor, **options: Any) -> float:
        loss.backward()
        optimizer = optimizers.setdefault(way, optimizer_of(bench, **options))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def reference(step: int) -> float:
        with materialised(bench.unet, columns) as maps:
            loss = predicted(drawn(step), encoded())
            read = [
                token_statistics(its[..., columns]) for name, its in maps.items() if name.endswith("attn2.processor")
            ]
            regulariser = sum(attention_regularisation(read, stage.mean_weight, stage.variance_weight))
            return updated("reference", loss + regulariser, foreach=False)

    def plain(step: int) -> float:
        with fused(bench.unet):
            return updated("unet", predicted(drawn(step), encoded() if embedding else once), fused=True)

    batch = bench.source.batch(stage.name, 0, range(stage.batch_size), stage.batch_size)

    def unet(step: int) -> float:
        told = once.detach().requires_grad_(embedding)
        with fused(bench.unet):
            return updated("unet", predicted(batch, told), fused=True)

    return {"reference": reference, "plain": plain, "unet": unet}


class Materialising:
    """An attention processor for every layer, whose probabilities are kept."""

    def __init__(self, name: str, maps: dict[str, Tensor]) -> None:
        self.name = name
        self.maps = maps

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        query, key, value = project(attn, hidden_states, encoder_hidden_states)
        self.maps[self.name] = probabilities = attention_probabilities(attn, query, key, None)
        return project_out(attn, torch.matmul(probabilities, value))


@contextlib.contextmanager
def materialised(unet: Any, columns: Sequence[int]) -> Iterator[dict[str, Tensor]]:
    """Every layer's probabilities during the block."""
    former = dict(unet.attn_processors)
    maps: dict[str, Tensor] = {}
    unet.set_attn_processor({name: Materialising(name, maps) for name in former})
    try:
        yield maps
    finally:
        unet.set_attn_processor(former)


@contextlib.contextmanager
def trainable(bench: Bench) -> Iterator[None]:
    """Gradients for the stage's parameters during the block."""
    parameters = trainable_parameters(bench.subject, bench.stage).values()
    for parameter in parameters:
        parameter.requires_grad_(True)
    yield
    for parameter in parameters:
        parameter.requires_grad_(False)


def interleaved(bench: Bench, rounds: int, beside: Sequence[str] = WAYS[1:]) -> dict[str, list[float]]:
    """Seconds of our way and those beside it, a round of all after each of our steps; the first round warms up."""
    others = {way: step for way, step in other_ways(bench).items() if way in beside}
    seconds: dict[str, list[float]] = {way: [] for way in ("ours", *others)}

    def after(own: float) -> None:
        number = len(seconds["ours"])
        seconds["ours"].append(own)
        bench.unet.zero_grad(set_to_none=True)  # the others begin without gradients, as ours does
        for way, step in others.items():
            began = time.perf_counter()
            step(number)
            seconds[way].append(time.perf_counter() - began)
        told = ", ".join(f"{way} {its[-1]:.2f} s" for way, its in seconds.items())
        print(told, file=sys.stderr, flush=True)

    train(bench, rounds + 1, after)
    return {way: its[1:] for way, its in seconds.items()}


def unet_flops(bench: Bench) -> int:
    """Counted floating-point operations of one step of the U-Net's part."""
    with trainable(bench), FlopCounterMode(display=False) as counted:
        other_ways(bench)["unet"](0)
    return int(counted.get_total_flops())


def matrix_product_rate(side: int = 2048) -> float:
    """Floating-point operations a second in a product of square matrices, the best of five."""
    left, right = torch.randn(2, side, side)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def gradients(bench: Bench, with_checkpointing: bool) -> None:
    """The gradients of one step, our way, and no update."""
    stage, subject = bench.stage, bench.subject
    trained = only_trainable(trainable_parameters(subject, stage))
    with trained, checkpointing(bench.unet, with_checkpointing), recording(stage, subject) as recorder:
        conditioning = conditioning_of(stage, subject, bench.source, bench.accelerator)
        accumulate_gradients(stage, 0, subject, bench.source, bench.accelerator, conditioning, recorder, 0)


def peak(bench: Bench, way: str, with_checkpointing: bool = False) -> int:
    """Bytes that two steps hold at most above the loaded model; AdamW's state and the gradients count.

    Freed memory goes back to the system, as in a run whose memory is tight: what is measured is what tensors need.
    """
    return_large_blocks()
    before = resident_bytes()
    forget_peak()
    if way == "ours":
        train(bench, 2)
    elif way == GRADIENTS:
        gradients(bench, with_checkpointing)
    else:
        with trainable(bench):
            for step in range(2):
                other_ways(bench)[way](step)
    return peak_bytes() - before


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratios of ours to the others, round by round."""
    found: dict[str, Any] = {"seconds": {way: round(statistics.median(its), 3) for way, its in seconds.items()}}
    for way in (way for way in seconds if way != "ours"):
        ratios = [own / other for own, other in zip(seconds["ours"], seconds[way], strict=True)]
        spread = [round(its, 3) for its in (min(ratios), statistics.median(ratios), max(ratios))]
        found[f"ours / {way}"] = dict(zip(("least", "median", "most"), spread, strict=True))
    return found


def peaks(chosen: argparse.Namespace) -> dict[str, Any]:
    """The most memory of our way and the reference's, each in a process of its own while this one holds little."""
    command = [sys.executable, "-m", "benchmarks.speed.training", "--layout", chosen.layout, "--stage", chosen.stage]
    command += ["--batch", str(chosen.batch), "--pool", str(chosen.pool), "--peak"]
    ours, reference = (
        int(subprocess.run([*command, way], check=True, capture_output=True).stdout) for way in ("ours", "reference")
    )
    of_both = {"ours": round(ours / 1e6), "reference": round(reference / 1e6)}
    return {"peak MB": of_both, "peak ours / reference": round(ours / reference, 3)}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=["tiny", *LAYOUTS], default="tiny")
    parser.add_argument("--stage", choices=["embedding", "attention", "unet"], default="unet")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pool", type=int, default=8, help="augmentations encoded beforehand, 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", nargs="+", choices=WAYS[1:], default=WAYS[1:], help="where not all fit the memory")
    parser.add_argument("--peak", choices=[*WAYS, GRADIENTS], help="measure the memory of one way instead")
    parser.add_argument("--checkpointing", action="store_true", help="of --peak gradients")
    parser.add_argument("--peaks", action="store_true", help="measure memory too")
    chosen = parser.parse_args()
    if chosen.peak:
        bench = prepared(chosen.layout, chosen.stage, chosen.batch, chosen.pool)
        print(peak(bench, chosen.peak, chosen.checkpointing))
        return 0
    found: dict[str, Any] = {name: getattr(chosen, name) for name in ("layout", "stage", "batch", "pool", "rounds")}
    if chosen.peaks:
        found |= peaks(chosen)
    bench = prepared(chosen.layout, chosen.stage, chosen.batch, chosen.pool)
    found |= {"threads": torch.get_num_threads(), **summary(interleaved(bench, chosen.rounds, chosen.beside))}
    flops, rate = unet_flops(bench), matrix_product_rate()
    found |= {"unet GFLOP": round(flops / 1e9, 1), "matrix product GFLOP/s": round(rate / 1e9, 1)}
    found["floor / ours"] = round(flops / rate / found["seconds"]["ours"], 3)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
