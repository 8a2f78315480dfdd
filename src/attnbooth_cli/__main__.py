"""`python -m attnbooth_cli`, the form that `accelerate launch -m` needs; the console script calls `main` too."""

import sys


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    try:
        from attnbooth_cli.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before any command could take care of it
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
