"""The rooms of the package and who may import whom, read from the source (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import attnbooth_cli

PACKAGE = Path(attnbooth_cli.__file__).parent
OURS = "attnbooth_cli"
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
TERMINAL = ("typer", "rich", "click")

# Room -> what it may import of ours. A name covers everything below it.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "events": (),
    "project": ("errors", "project"),
    "reports": ("errors", "project", "reports"),
    "engine": ("errors", "events", "project", "reports", "engine"),
    "cli": ("errors", "events", "project", "engine", "reports", "cli"),
    "__init__": ("engine",),
    "__main__": ("cli",),
}
STANDARD_ONLY = ("errors", "events", "__init__", "__main__")
# Room -> libraries it may not import anywhere, not even inside a function.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "project": (*HEAVY, *TERMINAL),
    "reports": (*HEAVY, *TERMINAL),
    "engine": TERMINAL,
    "cli": ("click",),
}
# What answers --help, --version, --dry-run and wrong arguments.
LIGHT = (
    "cli.app",
    "engine.plan",
    "engine.preparation",
    "engine.cluster",
    "engine.methods",
    "engine.base_models",
    "engine.tally",
)


@dataclass(frozen=True)
class Import:
    """One imported module, the line it stands on, and whether it runs when the importing module does."""

    name: str
    line: int
    at_import: bool


def imports(source: str) -> Iterator[Import]:
    """Every import of a module's source; `from a import b` counts as `a.b`, which covers `b` being a module."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (Import(f"{start}.{alias.name}", node.lineno, at_import) for alias in node.names)
        in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, at_import=False)
            for child in node.orelse:
                yield from visit(child, at_import)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not in_function)

    yield from visit(ast.parse(source), at_import=True)


def within(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def wrong_imports(room: str, source: str) -> list[str]:
    """What `source`, a module of `room`, imports and may not."""
    found = []
    for item in imports(source):
        if item.name.startswith("."):
            found.append(f"line {item.line}: relative import {item.name}")
        elif item.name == f"{OURS}.__version__":
            continue
        elif within(item.name, (OURS,)):
            if not within(item.name.removeprefix(OURS).lstrip("."), ALLOWED[room]):
                found.append(f"line {item.line}: {room} imports {item.name}")
        elif room in STANDARD_ONLY:
            if item.name.partition(".")[0] not in sys.stdlib_module_names:
                found.append(f"line {item.line}: {room} imports {item.name}, which is not the standard library's")
        elif within(item.name, FORBIDDEN[room]):
            found.append(f"line {item.line}: {room} imports {item.name}")
        elif room == "cli" and item.at_import and within(item.name, HEAVY):
            found.append(f"line {item.line}: {item.name} is imported when the command line starts")
    return found


def outlets(source: str) -> list[str]:
    """Where a module speaks to the terminal itself: `print`, `input`, or anything of sys.stdout and sys.stderr."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
            found.append(f"line {node.lineno}: {node.func.id}()")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr", "sys.stdin"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def test_every_module_is_in_a_known_room() -> None:
    assert {room_of(path) for path in modules()} == set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=named)
def test_imports_go_one_way(path: Path) -> None:
    assert wrong_imports(room_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path", [path for path in modules() if room_of(path) in ("engine", "project", "reports")], ids=named
)
def test_only_the_command_line_speaks(path: Path) -> None:
    assert outlets(path.read_text(encoding="utf-8")) == []


def test_the_guide_names_every_module_of_the_engine() -> None:
    guide = PACKAGE.parents[1] / "docs" / "architecture.md"
    names = {path.stem for path in modules() if room_of(path) == "engine"} - {"__init__"}
    assert names - set(re.findall(r"`(\w+)`", guide.read_text(encoding="utf-8"))) == set(), f"add a line to {guide}"


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("errors", "from attnbooth_cli import events"),
        ("events", "import torch"),
        ("events", "from pydantic import BaseModel"),
        ("project", "from attnbooth_cli.engine.plan import Plan"),
        ("project", "def load():\n    import torch"),
        ("reports", "from attnbooth_cli.engine import maps"),
        ("reports", "import torch.nn"),
        ("engine", "import attnbooth_cli.cli.console"),
        ("engine", "from rich.console import Console"),
        ("engine", "from ..cli import app"),
        ("cli", "try:\n    import torch\nexcept ImportError:\n    pass"),
    ],
)
def test_wrong_imports_are_seen(room: str, source: str) -> None:
    assert len(wrong_imports(room, source)) == 1


def test_allowed_imports_pass() -> None:
    source = """
import json
from typing import TYPE_CHECKING
from attnbooth_cli import __version__
from attnbooth_cli.errors import InputError
if TYPE_CHECKING:
    from torch import Tensor
def later():
    import torch
    from attnbooth_cli.engine.loop import run_stage
"""
    assert wrong_imports("cli", source) == []
    assert outlets("import sys\nprint('x')\nsys.stderr.write('x')") == ["line 2: print()", "line 3: sys.stderr"]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    program = f"import sys, {OURS}.{module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
