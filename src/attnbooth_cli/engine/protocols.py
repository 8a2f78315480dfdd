"""Evaluation protocols: all that must be equal for two scores to be comparable, as data. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from attnbooth_cli.engine.model_files import CLIP, DINO
from attnbooth_cli.engine.prompts import COMPLEX, DREAMBOOTH, EVALUATION, Groups
from attnbooth_cli.errors import InputError
from attnbooth_cli.project.prompt_files import read_prompts

Preprocessing = Literal["judge", "textual-inversion"]
PromptSet = Literal["evaluation", "complex", "object", "live"]


@dataclass(frozen=True)
class Protocol:
    """What one protocol fixes; None leaves a value to the base model's entry.

    Attributes:
        prompt_sets: Which prompts it may use; the first where the person names none.
        pictures_per_prompt: n.
        identity_prompts: Prompts that identity is measured on; empty for all of them.
        preprocessing: How pictures become the CLIP judge's input: by its own image processor, or as Textual
            Inversion's evaluation code does it.
        judge: The CLIP model.
        dino: The DINO model that scores identity as well.
        resolution: Pixels a side; None for the concept's own.
        source: Where these values are from.
    """

    name: str
    source: str
    prompt_sets: tuple[PromptSet, ...] = ("evaluation",)
    pictures_per_prompt: int = 4
    identity_prompts: tuple[str, ...] = ()
    preprocessing: Preprocessing = "judge"
    judge: str | None = None
    dino: str | None = None
    scheduler: str = "dpm++"
    steps: int | None = None
    guidance: float | None = None


PROTOCOLS: Mapping[str, Protocol] = {
    "attnbooth": Protocol(
        "attnbooth",
        "AttnDreamBooth (Pang et al. 2024): 24 prompts, the judge of Textual Inversion's evaluation; "
        "pictures per prompt, and the judge's own preprocessing, are our choice",
    ),
    "textual-inversion": Protocol(
        "textual-inversion",
        "Gal et al. 2022, and their evaluation/clip_eval.py: 64 pictures of a prompt, DDIM 50 steps, "
        'guidance 5; identity on "a photo of a {}"',
        pictures_per_prompt=64,
        identity_prompts=("a photo of a {}",),
        preprocessing="textual-inversion",
        judge=CLIP.example,
        scheduler="ddim",
        steps=50,
        guidance=5.0,
    ),
    "dreambooth": Protocol(
        "dreambooth",
        "Ruiz et al. 2023, section 4: 25 prompts, 4 pictures of each, CLIP-I, CLIP-T and DINO (ViT-S/16)",
        prompt_sets=("object", "live"),
        judge=CLIP.example,
        dino=DINO.example,
    ),
}


def prompt_groups(prompt_set: PromptSet, edition: str) -> Groups:
    """The prompts of a set by group; `edition` is the base model's ("general" or "tiny"), where a set has editions."""
    match prompt_set:
        case "evaluation":
            return EVALUATION[edition]
        case "complex":
            return COMPLEX[edition]
        case "object" | "live":
            return DREAMBOOTH[prompt_set]


def prompts_named(text: str | None) -> tuple[tuple[str, ...], PromptSet | None]:
    """What `--prompts` means: a set's name, or a file's prompts.

    Raises:
        InputError: neither.
    """
    if text is None:
        return (), None
    if text in get_args(PromptSet):
        return (), cast(PromptSet, text)
    if not Path(text).exists():
        raise InputError(
            f"there is no file {text}, and no prompt set of that name", f"sets: {', '.join(get_args(PromptSet))}"
        )
    return tuple(read_prompts(Path(text))), None


def check_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PROTOCOLS:
        raise InputError(f"there is no protocol {name!r}", f"protocols: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
