"""Writes docs/commands.md from what the program itself says: `--help` of every command, and every setting.

Run `python tools/write_command_reference.py` after changing a command, an option or a default; a test compares.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from attnbooth_cli.cli.app import app
from attnbooth_cli.engine.layers import DEFAULTS, setting_keys, setting_variable
from attnbooth_cli.engine.methods import ATTNDREAMBOOTH

PLACE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
WIDTH = "80"

HEAD = """\
# Commands

Written by `python tools/write_command_reference.py` from the program's own help; do not edit it here.

Results go to stdout, progress and messages to stderr. With `--json`, `train` and `resume` print one JSON object a line
(events `start`, `stage`, `step`, `checkpoint`, `snapshot`, `sample`, `done`, `error`, and `progress` while
pictures of the class are made; with several projects a `summary` at the end; with `--dry-run` a `plan` for each)
and every other command prints one JSON document; each carries `schema`, `event`, `project` and `run` (null before
`start`). The exit codes are in the README.
"""

SETTINGS = """\
## Settings

What `[train]` in `attnbooth.toml` may hold, what `--set KEY=VALUE` accepts, and the environment variable of each. The
order in which they override each other is in the README; `attnbooth train PROJECT --dry-run` prints every value and
where it came from.

| key | default | environment variable |
|---|---|---|
"""


def reference() -> str:
    """The whole document."""
    commands = [info.name for info in app.registered_commands if info.name]
    parts = [HEAD, section("attnbooth", [])]
    parts += [section(f"attnbooth {name}", [name]) for name in commands]
    return "\n".join([*parts, SETTINGS + "".join(settings())])


def section(title: str, arguments: list[str]) -> str:
    """One command's help as a section."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTNBOOTH_")}
    done = subprocess.run(
        [sys.executable, "-m", "attnbooth_cli", *arguments, "--help"],
        env=environment | {"COLUMNS": WIDTH, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    return f"## `{title}`\n\n```text\n{lines}\n```\n"


def settings() -> Iterator[str]:
    """One row of the settings table each."""
    stages = {stage.name: stage for stage in ATTNDREAMBOOTH.stages}
    for key in setting_keys():
        _, *places = key.split(".")
        if len(places) == 2:
            default = getattr(stages[places[0]], places[1])  # type: ignore[index]
            default = "none" if default is None else default
        elif key == "train.resolution":
            default = "the base model's own"
        else:
            default = {**DEFAULTS, "train.prompt": ATTNDREAMBOOTH.prompts[0]}[key]
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        yield f"| `{key}` | {shown} | `{setting_variable(key)}` |\n"


if __name__ == "__main__":
    PLACE.write_text(reference(), encoding="utf-8")
