"""What the tests of whole commands share: an isolated environment, small pictures, and one trained project."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser  # noqa: F401

# Libraries read these while they are imported, so they are set before anything else is.
_HOME = Path(tempfile.mkdtemp(prefix="attnbooth-tests-"))
(_HOME / "config.toml").touch()
for _name in [name for name in os.environ if name.startswith(("ATTNBOOTH_", "HF_", "HUGGING"))]:
    del os.environ[_name]
os.environ |= {
    "ATTNBOOTH_CONFIG": str(_HOME / "config.toml"),
    "HF_HOME": str(_HOME / "huggingface"),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
os.environ.pop("NO_COLOR", None)

# A launcher in the background may have us ignore these, and programs that ignore a signal are left to.
for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "src" / "attnbooth_cli" / "assets" / "example"
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
SHORT = tuple(
    f"--set=train.{key}={value}"
    for key, value in {
        "embedding.steps": 2,
        "embedding.batch_size": 1,
        "attention.steps": 8,
        "attention.batch_size": 1,
        "unet.steps": 2,
        "unet.batch_size": 1,
        "save_precision": "float32",
    }.items()
)
"""Settings of a real run of all three stages that takes seconds; float32 so that results can be compared bit by bit."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document that is all of stdout."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document

    @property
    def events(self) -> list[dict[str, Any]]:
        """Stdout as one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def named(self, name: str) -> list[dict[str, Any]]:
        """The events of one name."""
        return [event for event in self.events if event["event"] == name]


Cli = Callable[..., Outcome]


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def quick_trainings(engine_loaded: None) -> Iterator[None]:
    """Few tests look at the pictures that a training makes on its way, or at how long it said it would take."""
    with quick():
        yield


@pytest.fixture(scope="session")
def engine_loaded() -> None:
    """Imports everything once and keeps it out of garbage collections, of which every stage of training does one."""
    import diffusers
    import transformers

    from attnbooth_cli.engine import evaluation, generation, inspection, training

    assert all((diffusers, transformers, evaluation, generation, inspection, training))
    gc.collect()
    gc.freeze()


SAMPLING_STEPS = 1


@contextlib.contextmanager
def quick(*, trial_step: bool = False) -> Iterator[None]:
    """Makes the sample pictures of training in `SAMPLING_STEPS` steps and measures no trial step unless asked to: they
    are most of a short run's time."""
    from attnbooth_cli.engine import execution, session, subjects, trial

    original = session.sampling_settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "estimate_seconds", trial.estimate_seconds if trial_step else lambda *_: None)
        for module in (session, subjects):
            patch.setattr(module, "sampling_settings", lambda *a: replace(original(*a), steps=SAMPLING_STEPS))
        yield


@pytest.fixture
def trial_step() -> Iterator[None]:
    """Measures a trial step after all."""
    with quick(trial_step=True):
        yield


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `scored_in`, two steps."""
    scored_in(2, monkeypatch)


def scored_in(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Makes the pictures `eval` scores in so many steps, whatever its protocol says and records."""
    from attnbooth_cli.engine import gallery, sampling

    patch.setattr(
        gallery, "sample_missing", lambda c, r, s, *rest: sampling.sample_missing(c, r, replace(s, steps=steps), *rest)
    )


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what is remembered between runs out of the user's cache."""
    os.environ["ATTNBOOTH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cli(engine_loaded: None, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command line in this process; what any library writes to the file descriptors counts as output."""
    from attnbooth_cli.cli.app import run

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


def program(*arguments: object) -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-m", "attnbooth_cli", *map(str, arguments)]


def run_program(*arguments: object, **environment: str) -> Outcome:
    """Runs a command as a process of its own, its output piped."""
    done = subprocess.run(
        program(*arguments), env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


NAMES = ("one", "two", "three", "four", "five")


def pictures(folder: Path, subject: str = "cat", names: Sequence[str] = NAMES) -> Path:
    """A folder of the bundled 64-pixel example pictures, under these of our `NAMES`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in zip(NAMES, sorted((EXAMPLE / subject).iterdir()), strict=True):
        if name in names:
            shutil.copy(path, folder / f"{name}.png")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes, the lock's own files aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def weights(project: Path) -> dict[str, bytes]:
    """The concept's weight files."""
    return {name: data for name, data in snapshot(project / "concept").items() if name.endswith(".safetensors")}


def leftovers(project: Path) -> list[str]:
    """Temporary files and folders that a finished command should have taken away."""
    return [str(path) for path in project.rglob("*") if path.name.startswith(".attnbooth-tmp-")]


def example_project(root: Path) -> Path:
    """A new project with the bundled pictures and base model."""
    from attnbooth_cli.cli.app import run

    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["init", str(root), "--example", "-q"]) == 0
    return root


def flip_byte(path: Path, place: int = -100) -> None:
    """Damages a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with nothing trained."""
    return example_project(tmp_path / "toadstool")


@pytest.fixture(scope="session")
def trained_once(engine_loaded: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose three stages were trained with `SHORT` and never interrupted. Read only."""
    from attnbooth_cli.cli.app import run

    root = example_project(tmp_path_factory.mktemp("trained") / "toadstool")
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["train", str(root), *SHORT, "-q"]) == 0
    return root


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of the trained project."""
    return Path(shutil.copytree(trained_once, tmp_path / "toadstool"))


@pytest.fixture(scope="session")
def interrupted_once(engine_loaded: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained project's run, stopped by a signal after step 5 of stage attention, checkpoints at 4 and 5."""
    from attnbooth_cli.engine.preparation import TrainOptions
    from attnbooth_cli.engine.training import train
    from attnbooth_cli.errors import StoppedError

    root = example_project(tmp_path_factory.mktemp("interrupted") / "toadstool")
    settings = tuple(argument.removeprefix("--set=") for argument in (*SHORT, "train.checkpoint_every=2"))
    steps = iter(range(1, 1000))
    fifth = 2 + 2 + 1 + 5  # asked twice before the first step, after each of the 2 + 8 + 2 steps, once between stages
    with pytest.raises(StoppedError):
        train(root, options=TrainOptions(settings=settings), should_stop=lambda: 15 if next(steps) == fifth else 0)
    return root


@pytest.fixture
def interrupted(interrupted_once: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted project."""
    return Path(shutil.copytree(interrupted_once, tmp_path / "toadstool"))


@pytest.fixture
def photos() -> Path:
    """Real photos, where they lie beside the checkout."""
    if not PHOTOS.is_dir():
        pytest.skip("the real photos are not here")
    return PHOTOS


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small in-memory disk at `place`; skips the test where mounting is not allowed."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a disk here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder unwritable: by its mode, or, for root, whom modes do not stop, by a read-only mount of itself."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    commands = (["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,bind,ro", str(folder)])
    try:
        for command in commands:
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("root may not mount here, and permissions do not stop it")
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], capture_output=True)
