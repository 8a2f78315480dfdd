"""One training loop for every part of the tiny pipeline: bf16 work on float32 masters, one or two processes, resumable.

The trained weights live in one flat float32 vector, the masters; P below is its length. The gradients, AdamW's moments
and the exponential average of the masters are vectors of the same layout, so that a step is a handful of vector
operations, an exchange between processes is one all-reduce, and a saved state is four tensors and a JSON header.

All randomness comes from a `Draw`, keyed by the schedule's seed and the step. A resumed training therefore continues
bit for bit, and two processes see the very batch that one would see. Modules with running statistics (batch norm) or
dropout would break both promises and have no place here.
"""

import contextlib
import copy
import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

STATE = "state.safetensors"
CURVE = "curve.jsonl"
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
START_UP = timedelta(minutes=5)
VECTORS = ("weights", "average", "first_moment", "second_moment")

Precision = Literal["auto", "bf16", "float32"]
Modules = Mapping[str, nn.Module]
Build = Callable[[], Modules]


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train.

    The rate warms up, stays, and cools down linearly to zero over the last steps. While it stays, nothing depends on
    the end: `steps` and `cool_down` may be changed between runs, the rest may not.
    """

    steps: int
    batch_size: int
    """Samples of a step, over all processes."""
    learning_rate: float
    warm_up: int = 100
    cool_down: int = 0
    weight_decay: float = 1e-2
    """Only for parameters of more than one dimension: not for biases and norms."""
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of the step with this number, counted from 0."""
        warm = (step + 1) / self.warm_up if self.warm_up else 1.0
        cool = (self.steps - step) / self.cool_down if self.cool_down else 1.0
        return self.learning_rate * min(1.0, warm, cool)

    def decay(self, updates: int) -> float:
        """The decay of the average after this many updates: it starts low, to forget the initial weights soon."""
        return min(self.ema_decay, (1 + updates) / (10 + updates))

    def fixed(self) -> dict[str, object]:
        """What a resumed training must have in common with the saved one, as JSON would give it back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in ("steps", "cool_down")
        }


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step, and which samples of its batch belong to this process.

    Every method draws for the whole batch and returns this process's B samples. Losses must call them in the same
    order on every process, and must not use any other source of randomness.
    """

    seed: int
    step: int
    batch_size: int
    rank: int = 0
    processes: int = 1
    generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = np.random.SeedSequence([self.seed, self.step]).generate_state(1, np.uint64)[0]
        object.__setattr__(self, "generator", torch.Generator().manual_seed(int(key >> np.uint64(1))))

    @property
    def size(self) -> int:
        """B, the number of this process's samples."""
        return self.batch_size // self.processes

    def _share(self, whole: Tensor) -> Tensor:
        return whole[self.rank * self.size : (self.rank + 1) * self.size]

    def indices(self, dataset_size: int) -> Tensor:
        """Which samples of a dataset to use, with replacement: int64 [B]."""
        return self.integers(0, dataset_size)

    def integers(self, low: int, high: int) -> Tensor:
        """Integers from `low` to `high` - 1: int64 [B]."""
        return self._share(torch.randint(low, high, (self.batch_size,), generator=self.generator))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from 0 to 1: float32 [B, *shape]."""
        return self._share(torch.rand(self.batch_size, *shape, generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers: float32 [B, *shape]."""
        return self._share(torch.randn(self.batch_size, *shape, generator=self.generator))


Loss = Callable[[Modules, Draw, float], tuple[Tensor, dict[str, float]]]
"""(modules, draw, progress from 0 to 1) -> (mean loss over the draw's samples, figures for the curve)."""


@dataclass(frozen=True)
class Header:
    """What a saved state says of itself, kept as JSON beside its tensors."""

    step: int
    seconds: float
    """Of training, over all runs."""
    precision: Literal["bf16", "float32"]
    schedule: dict[str, object]
    """`Schedule.fixed` of the training."""
    layout: list[tuple[str, list[int]]]
    """Names and shapes of the parameters, in the order of the flat vectors."""


@dataclass(frozen=True)
class Job:
    """A training as every process gets it; `build` and `loss` must be picklable."""

    build: Build
    loss: Loss
    schedule: Schedule
    folder: Path
    processes: int = 1
    precision: Precision = "auto"
    save_every: float = 120.0
    log_every: int = 50
    deadline: float = math.inf
    """When to stop short, on `time.monotonic`'s clock."""

    def draw(self, step: int, rank: int) -> Draw:
        return Draw(self.schedule.seed, step, self.schedule.batch_size, rank, self.processes)


def train(
    build: Build,
    loss: Loss,
    schedule: Schedule,
    folder: Path,
    *,
    processes: int = 1,
    precision: Precision = "auto",
    save_every: float = 120.0,
    log_every: int = 50,
    minutes: float | None = None,
) -> dict[str, nn.Module] | None:
    """Train, or continue the training saved in `folder`; return the averaged weights in float32, None if time ran out.

    `build` makes the modules in float32 and is called in each process with torch's seed set; parameters that do not
    require gradients stay as built. `minutes` limits this call, not the training. SIGTERM and SIGINT finish the step,
    save, and leave with SystemExit(143) and SystemExit(130).

    Processes beyond this one are spawned, so the calling script needs the usual `if __name__ == "__main__"`.
    """
    if schedule.batch_size % processes:
        raise ValueError(f"a batch of {schedule.batch_size} cannot be shared evenly by {processes} processes")
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    job = Job(build, loss, schedule, folder, processes, precision, save_every, log_every, deadline)
    folder.mkdir(parents=True, exist_ok=True)
    header = saved_header(folder)
    if header is not None:
        _check_same(header, schedule)
    if header is None or header.step < schedule.steps:
        with _caught_signals() as caught, _companions(job):
            step = _loop(job, 0, caught)
        if caught:
            raise SystemExit(128 + caught[0])
        if step < schedule.steps:
            return None
    modules = _built(job)
    load_average(folder, modules)
    return modules


def load_average(folder: Path, modules: Modules) -> int:
    """Put the averaged weights of a training, finished or not, into float32 modules; return the steps it has done."""
    with safe_open(folder / STATE, framework="pt") as saved:
        header = _header(saved.metadata())
        average = saved.get_tensor("average")
    parameters = _named_parameters(modules)
    pieces = torch.split(average, [math.prod(shape) for _, shape in header.layout])
    with torch.no_grad():
        for (name, shape), piece in zip(header.layout, pieces, strict=True):
            parameters[name].copy_(piece.view(shape))
    return header.step


def _loop(job: Job, rank: int, caught: list[int]) -> int:
    """Take steps until the schedule, the deadline or a signal ends it; return the number of steps ever done."""
    schedule, modules = job.schedule, _built(job)
    weights = Weights(modules, schedule)
    header = saved_header(job.folder)
    if header is None:
        step, seconds = 0, 0.0
        precision = _faster_precision(job, modules, rank) if job.precision == "auto" else job.precision
    else:
        weights.load(job.folder / STATE, header)
        step, seconds, precision = header.step, header.seconds, header.precision
    for module in modules.values():
        _cast(module, DTYPES[precision]).train()
    weights.publish()
    curve = Curve(job.folder / CURVE, job.log_every, step) if rank == 0 else None
    started = saved_at = time.monotonic()
    started -= seconds
    stop = False
    while step < schedule.steps and not stop:
        loss, figures = job.loss(modules, job.draw(step, rank), step / schedule.steps)
        loss.backward()
        wanted = rank == 0 and (bool(caught) or time.monotonic() >= job.deadline)
        norm, stop = weights.gather(job.processes, wanted)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient of step {step} is {norm}; the last saved state is intact")
        weights.update(schedule.rate(step), norm)
        step += 1
        if curve is None:
            continue
        now = time.monotonic()
        ended = stop or step == schedule.steps
        curve.add(step, now - started, schedule.rate(step - 1), {"loss": loss.item(), "gradient": norm} | figures)
        if ended or now - saved_at >= job.save_every:
            weights.save(job.folder / STATE, now - started, precision)
            saved_at = time.monotonic()
    return step


class Weights:
    """The working parameters of some modules, their float32 masters, AdamW on these, and their average.

    The parameters of more than one dimension come first in the flat vectors, so that weight decay is one slice.
    """

    def __init__(self, modules: Modules, schedule: Schedule) -> None:
        trained = {name: p for name, p in _named_parameters(modules).items() if p.requires_grad}
        ordered = sorted(trained.items(), key=lambda item: item[1].ndim <= 1)
        self.schedule = schedule
        self.updates = 0
        self.layout = [(name, list(p.shape)) for name, p in ordered]
        self.parameters: list[Tensor] = [p for _, p in ordered]
        self.weights = torch.cat([p.detach().float().reshape(-1) for p in self.parameters])
        self.average = self.weights.clone()
        self.first_moment = torch.zeros_like(self.weights)
        self.second_moment = torch.zeros_like(self.weights)
        # One more place than there are weights: the wish to stop travels with the gradients.
        self.exchanged = torch.zeros(len(self.weights) + 1)
        self.gradient = self.exchanged[:-1]
        self.decayed = sum(p.numel() for p in self.parameters if p.ndim > 1)
        self.optimiser = self._optimiser()

    def _optimiser(self) -> torch.optim.AdamW:
        """AdamW whose parameters, gradients and moments are slices of the vectors above."""
        slices = [slice(0, self.decayed), slice(self.decayed, None)]
        masters = [nn.Parameter(self.weights[part]) for part in slices]
        optimiser = torch.optim.AdamW(
            [
                {"params": [master], "weight_decay": decay}
                for master, decay in zip(masters, (self.schedule.weight_decay, 0.0), strict=True)
            ],
            lr=self.schedule.learning_rate,
            betas=self.schedule.betas,
            foreach=True,
        )
        for master, part in zip(masters, slices, strict=True):
            master.grad = self.gradient[part]
            optimiser.state[master] = {
                "step": torch.tensor(float(self.updates)),
                "exp_avg": self.first_moment[part],
                "exp_avg_sq": self.second_moment[part],
            }
        return optimiser

    def _views(self, vector: Tensor) -> list[Tensor]:
        """A [P] vector as tensors of the parameters' shapes."""
        pieces = torch.split(vector, [p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    @torch.no_grad()
    def publish(self) -> None:
        """Give the masters to the working parameters, in their dtype and memory format."""
        torch._foreach_copy_(self.parameters, self._views(self.weights))

    @torch.no_grad()
    def gather(self, processes: int, wants_stop: bool) -> tuple[float, bool]:
        """Move the parameters' gradients into the vector, averaged over processes; return its norm, and if to stop."""
        for view, parameter in zip(self._views(self.gradient), self.parameters, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
                parameter.grad = None
        self.exchanged[-1] = float(wants_stop)
        if processes > 1:
            dist.all_reduce(self.exchanged)
            self.exchanged /= processes
        return self.gradient.norm().item(), bool(self.exchanged[-1] > 0)

    @torch.no_grad()
    def update(self, rate: float, norm: float) -> None:
        """One step of AdamW with the gathered gradient, clipped to the schedule's norm, and of the average."""
        if norm > self.schedule.gradient_clip:
            self.gradient *= self.schedule.gradient_clip / norm
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.updates += 1
        self.average.lerp_(self.weights, 1 - self.schedule.decay(self.updates))
        self.publish()

    def save(self, path: Path, seconds: float, precision: Literal["bf16", "float32"]) -> None:
        """Replace the saved state; a crash at any moment leaves the old one or the new one."""
        header = Header(self.updates, seconds, precision, self.schedule.fixed(), self.layout)
        tensors = {name: getattr(self, name) for name in VECTORS}
        _replace(path, save(tensors, {"training": json.dumps(asdict(header))}))

    @torch.no_grad()
    def load(self, path: Path, header: Header) -> None:
        """Continue from a saved state."""
        if header.layout != self.layout:
            raise ValueError(f"the state in {path.parent} is of other modules: their parameters differ")
        with safe_open(path, framework="pt") as saved:
            for name in VECTORS:
                getattr(self, name).copy_(saved.get_tensor(name))
        self.updates = header.step
        self.optimiser = self._optimiser()


class Curve:
    """The figures of a training, a JSON line every few steps: their means since the line before."""

    def __init__(self, path: Path, log_every: int, step: int) -> None:
        self.path = path
        self.log_every = log_every
        self.sums: dict[str, float] = {}
        self.count = 0
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        _replace(path, "".join(line + "\n" for line in kept).encode())

    def add(self, step: int, seconds: float, rate: float, figures: Mapping[str, float]) -> None:
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in figures.items()}
        self.count += 1
        if step % self.log_every:
            return
        means = {name: round(total / self.count, 6) for name, total in self.sums.items()}
        line = {"step": step, "seconds": round(seconds, 1), "rate": round(rate, 9)} | means
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.sums, self.count = {}, 0


def _step_of(line: str) -> float:
    """The step of a curve's line; infinity for a line that a crash cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def saved_header(folder: Path) -> Header | None:
    """The header of a training's saved state, None where there is none."""
    if not (folder / STATE).exists():
        return None
    with safe_open(folder / STATE, framework="pt") as saved:
        return _header(saved.metadata())


def _header(metadata: Mapping[str, str]) -> Header:
    fields = json.loads(metadata["training"])
    layout = [(name, shape) for name, shape in fields.pop("layout")]
    return Header(**fields, layout=layout)


def _check_same(header: Header, schedule: Schedule) -> None:
    """Refuse to continue a training under a schedule that would not have led to its state."""
    saved, asked = header.schedule, schedule.fixed()
    changed = [f"{name} {saved.get(name)} -> {asked[name]}" for name in asked if saved.get(name) != asked[name]]
    if changed:
        raise ValueError(f"a saved training cannot continue with another schedule: {', '.join(changed)}")
    if header.step > schedule.steps:
        raise ValueError(f"the saved training has done {header.step} steps, more than the {schedule.steps} asked for")


def _named_parameters(modules: Modules) -> dict[str, nn.Parameter]:
    return {f"{name}.{path}": p for name, module in modules.items() for path, p in module.named_parameters()}


def _built(job: Job) -> dict[str, nn.Module]:
    torch.manual_seed(job.schedule.seed)
    return dict(job.build())


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    # Not `module.to`: that of diffusers' models warns of precision, which the masters keep.
    return nn.Module.to(module, dtype)


def _faster_precision(job: Job, modules: Modules, rank: int) -> Literal["bf16", "float32"]:
    """Time two steps in each precision, all processes at once as in training; the first process's clock decides."""
    seconds: dict[str, float] = {}
    for name, dtype in DTYPES.items():
        copies = {key: _cast(copy.deepcopy(module), dtype).train() for key, module in modules.items()}
        for attempt in range(3):  # the first is slower and does not count
            if attempt == 1:
                started = time.perf_counter()
            job.loss(copies, job.draw(0, rank), 0.0)[0].backward()
        seconds[name] = time.perf_counter() - started
    choice = torch.tensor(int(seconds["bf16"] < seconds["float32"]))
    if job.processes > 1:
        dist.broadcast(choice, 0)
    return "bf16" if choice else "float32"


def _replace(path: Path, content: bytes) -> None:
    """Write a file durably: whole beside the old one, to the disk, then in its place."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _companions(job: Job) -> Iterator[None]:
    """The other processes of a training, one thread each, joined with this one by gloo on the loopback interface."""
    if job.processes == 1:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", 0, job.processes, is_master=True, timeout=START_UP, wait_for_workers=False)
    context = torch.multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_companion, args=(job, rank, store.port), daemon=True)
        for rank in range(1, job.processes)
    ]
    # Ctrl-C reaches the companions too. They inherit the blocked signals and leave the decision to this process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        for other in others:
            other.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        _join_group(job, 0, store)
        yield
        for other in others:
            other.join()
    finally:
        for other in others:
            other.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _companion(job: Job, rank: int, port: int) -> None:
    """What a spawned process runs."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    _join_group(job, rank, TCPStore("127.0.0.1", port, job.processes, is_master=False, timeout=START_UP))
    _loop(job, rank, [])
    dist.destroy_process_group()


def _join_group(job: Job, rank: int, store: TCPStore) -> None:
    # A machine whose own name does not resolve, or resolves to an outer address, must not matter here.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=job.processes)
