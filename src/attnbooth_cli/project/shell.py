"""Command lines as a person can paste them into a shell: whatever a folder or a prompt is called, it stays one word.

The quoting is that of POSIX shells.
"""

from __future__ import annotations

import shlex


def command(*words: object) -> str:
    """`command("train", "my cat")` -> "attnbooth train 'my cat'"."""
    return shlex.join(["attnbooth", *map(str, words)])


def generate_command(
    root: object,
    prompt: str,
    *,
    seed: int,
    steps: int,
    guidance: float,
    width: int,
    height: int,
    scheduler: str,
    negative: str,
    stage: str,
    device: str | None = None,
) -> str:
    """The command that makes one picture again, with every option that decides its pixels.

    Args:
        prompt: As a person writes it, with `{}` for the concept.
        device: Only if one was asked for; what there is otherwise.
    """
    options: list[object] = ["--seed", seed, "--steps", steps, "--guidance", repr(float(guidance)).removesuffix(".0")]
    options += [f"--negative={negative}"] if negative.startswith("-") else ["--negative", negative] if negative else []
    options += ["--scheduler", scheduler, "--size", f"{width}x{height}", "--stage", stage]
    options += ["--device", device] if device else []
    places = (str(root), prompt)
    if any(place.startswith("-") for place in places):
        return command("generate", *options, "--", *places)
    return command("generate", *places, *options)
