"""docs/commands.md says what the program says."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_reference_is_up_to_date() -> None:
    pinned = re.search(r"^typer==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if pinned is None or version("typer") != pinned[1]:
        pytest.skip("another version of typer words its help differently")
    specification = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "write_command_reference.py")
    assert specification is not None
    assert specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    assert tool.PLACE.read_text(encoding="utf-8") == tool.reference(), "run: python tools/write_command_reference.py"
