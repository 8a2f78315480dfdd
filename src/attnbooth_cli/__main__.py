"""`python -m attnbooth_cli`, the form that `accelerate launch -m` needs; the console script calls `main` too."""

import sys


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    from attnbooth_cli.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
