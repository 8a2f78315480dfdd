"""Fuzzing of what reads files from strangers: the manifest, the state of a project, and pictures.

    python -m benchmarks.fuzz manifest --seconds 60

needs the library atheris (`pip install atheris`), which nothing else does. It begins with the inputs kept in
`tests/reliability/corpus/`, which the suite replays. An input that makes a target raise anything but one of our own
errors is added to them, and so are, with `--keep N`, the N shortest of those that reached code no other had.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent.parent / "tests" / "reliability" / "corpus"
LONGEST = 4096
"""Bytes of an input."""


def read_manifest(folder: Path, data: bytes) -> None:
    """Reads `data` as a manifest; raises what is no `InputError`."""
    from attnbooth_cli.errors import InputError
    from attnbooth_cli.project import manifest

    path = folder / "attnbooth.toml"
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        manifest.read_manifest(path)


def read_state(folder: Path, data: bytes) -> None:
    """Reads `data` as a project's state and as everything it is rebuilt from; raises what is no `InputError`."""
    from attnbooth_cli.errors import InputError
    from attnbooth_cli.project import state
    from attnbooth_cli.project.project import Project

    run = folder / "runs" / "001-x"
    paths = [folder / "state.json", folder / "concept" / "concept.json", run / "plan.json", run / "events.jsonl"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in paths:  # first as it is, then without the files before
        with contextlib.suppress(InputError):
            state.read_state(Project(folder))
        path.write_bytes(b'{"run": "001-x", "digest": "", "stages": ["unet"]}')


def read_picture(folder: Path, data: bytes) -> None:
    """Takes `data` in as a picture; raises what is neither an `InputError` nor a want of memory."""
    from attnbooth_cli.errors import InputError, ResourceError
    from attnbooth_cli.project import pictures

    path = folder / "a.png"
    path.write_bytes(data)
    with contextlib.suppress(InputError, ResourceError):
        pictures.survey([path])


TARGETS: dict[str, Callable[[Path, bytes], None]] = {
    "manifest": read_manifest,
    "state": read_state,
    "picture": read_picture,
}


def kept(target: str) -> list[Path]:
    """The inputs kept for a target."""
    return sorted(path for path in (CORPUS / target).iterdir() if path.is_file())


def add(target: str, path: Path) -> Path:
    """Keeps an input under the hash of its bytes."""
    place = CORPUS / target / hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    shutil.copyfile(path, place)
    return place


def fuzz(target: str, found: Path, seconds: int) -> None:
    """Fuzzes until the time is over or an input fails, and ends the process."""
    import atheris

    with atheris.instrument_imports(include=["attnbooth_cli", "tomllib", "PIL"]):
        import tomllib

        import PIL.PngImagePlugin

        import attnbooth_cli.project.pictures
        import attnbooth_cli.project.state

    loaded = (PIL.PngImagePlugin, tomllib, attnbooth_cli.project)
    with tempfile.TemporaryDirectory(prefix="attnbooth-fuzz-") as folder:
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST}",
            f"-artifact_prefix={found}/failed-",
            "-timeout=20",
        ]
        atheris.Setup(
            [str(loaded[0].__name__), str(found), str(CORPUS / target), *options],
            lambda data: TARGETS[target](Path(folder), data),
        )
        atheris.Fuzz()


def main() -> int:
    """Runs one target in a process of its own and keeps what it finds; 1 if an input failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description="Fuzz what reads strangers' files.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--keep", type=int, default=0, metavar="N", help="add the N shortest new inputs to the corpus")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.into:
        fuzz(asked.target, asked.into, asked.seconds)
    with tempfile.TemporaryDirectory(prefix="attnbooth-found-") as folder:
        again = [sys.executable, "-m", "benchmarks.fuzz", asked.target, "--seconds", str(asked.seconds)]
        subprocess.run([*again, "--into", folder], check=False)
        paths = sorted(Path(folder).iterdir(), key=lambda path: (path.stat().st_size, path.name))
        failed = [path for path in paths if path.name.startswith("failed-")]
        for path in [*failed, *(path for path in paths if path not in failed)][: len(failed) + asked.keep]:
            print(add(asked.target, path))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
