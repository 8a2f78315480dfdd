"""The command line: declares the commands, and turns every failure into a sentence and an exit code in one place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from attnbooth_cli import __version__
from attnbooth_cli.cli.console import Console
from attnbooth_cli.cli.evaluate import evaluate
from attnbooth_cli.cli.failures import explain
from attnbooth_cli.cli.generate import generate
from attnbooth_cli.cli.init import init
from attnbooth_cli.cli.inspect_attn import inspect_attn
from attnbooth_cli.cli.status import status
from attnbooth_cli.cli.streams import BROKEN_PIPE, lasting_streams, silence
from attnbooth_cli.cli.take import take
from attnbooth_cli.cli.train import resume, train
from attnbooth_cli.errors import BoothError, InputError

app = typer.Typer(
    name="attnbooth",
    help="Put your own cat into any picture you can describe (AttnDreamBooth for Stable Diffusion).",
    rich_markup_mode=None,  # keeps rich out of --help, which must be fast
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnbooth {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("init")(init)
app.command("train")(train)
app.command("resume")(resume)
app.command("generate")(generate)
app.command("eval")(evaluate)
app.command("inspect-attn")(inspect_attn)
app.command("take")(take)
app.command("status")(status)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code.

    Args:
        arguments: Without the program's name.
    """
    with lasting_streams():
        try:
            code = _answer(arguments or ["--help"])
        except (BrokenPipeError, SystemExit) as error:
            # Typer turns a broken pipe into an exit of its own.
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise
            code = BROKEN_PIPE
        try:
            sys.stdout.flush()
        except OSError:
            silence(sys.stdout)
        return code


def _answer(arguments: Sequence[str]) -> int:
    console = Console(
        json="--json" in arguments,
        quiet=bool({"--quiet", "-q"} & set(arguments)),
        verbose=bool({"--verbose", "-v"} & set(arguments)),
    )
    try:
        _refuse_empty(arguments)
        outcome = app(list(arguments), prog_name="attnbooth", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except typer.TyperException as error:
        console.failure(_usage(error, arguments))
        return error.exit_code
    except BoothError as error:
        console.failure(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        explained = explain(error)
        console.failure(explained)
        return explained.exit_code


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An empty path would mean the current folder, and comes from a shell variable that is not set."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument.strip() and before != "--negative":
            raise InputError(f"an argument is empty{f' (after {before})' if before else ''}", "is a variable not set?")


def _usage(error: typer.TyperException, arguments: Sequence[str]) -> InputError:
    command = next((word for word in arguments if not word.startswith("-")), "")
    names = {info.name for info in app.registered_commands}
    message = error.format_message().replace("Value error, ", "")  # how pydantic begins what Typer has it check
    return InputError(message, f"attnbooth {command + ' ' if command in names else ''}--help")
