"""What an evaluation asks: prompts, pictures, judges and sampler, all resolved; and how a prompt is scored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbooth_cli.engine.base_models import BaseModel
from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.generation import MAX_PICTURES, settings_for
from attnbooth_cli.engine.methods import StageName
from attnbooth_cli.engine.protocols import PromptSet, Protocol, check_protocol, prompt_groups
from attnbooth_cli.engine.sampling import SamplingSettings
from attnbooth_cli.engine.tokens import Placeholder
from attnbooth_cli.errors import InputError

NO_JUDGE = "none"
"""Said in place of a second judge, leaves out the one a protocol has."""


@dataclass(frozen=True)
class EvalOptions:
    """What a person may choose; None leaves it to the protocol, and then to the base model.

    Attributes:
        prompts: Prompts of their own, in place of the protocol's.
        prompt_set: A set by name, in its place.
        n: Pictures of each prompt.
        clip, dino: Judges, in place of the protocol's; `dino="none"` leaves its second judge out.
        stage: The concept as it was after this stage.
        drift: Whether to measure how far the model has moved on prompts without the concept.
        baseline: Whether to score the untuned base model on the same prompts too, with the category's word alone.
        untuned_pictures: Where the base model's own pictures are kept; in the project by default. Projects that share
            a base model and a category share most of them.
    """

    protocol: str = "attnbooth"
    prompts: tuple[str, ...] = ()
    prompt_set: PromptSet | None = None
    n: int | None = None
    seed: int = 0
    clip: str | None = None
    dino: str | None = None
    stage: StageName | None = None
    drift: bool = True
    baseline: bool = False
    untuned_pictures: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Question:
    """What an evaluation asks, all of it resolved.

    Attributes:
        groups: Prompts as the person writes them, `{}` for the concept, by group.
        identity_prompts: The prompts identity is measured on.
        text_prompts: The prompts text is measured on.
        deviations: What was set otherwise than the protocol fixes it, by name.
    """

    protocol: Protocol
    groups: Mapping[str, tuple[str, ...]]
    identity_prompts: frozenset[str]
    text_prompts: frozenset[str]
    n: int
    seed: int
    judge: str
    dino: str | None
    settings: SamplingSettings
    deviations: Mapping[str, Any]

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, in order."""
        return tuple(prompt for its in self.groups.values() for prompt in its)

    @property
    def seeds(self) -> range:
        """The seeds of every prompt's pictures."""
        return range(self.seed, self.seed + self.n)


def ask(base: BaseModel, card: Card, options: EvalOptions) -> Question:
    """Resolves what is evaluated: the protocol's values, the person's over them, else the base model's.

    Raises:
        InputError: no such protocol, or a number that cannot be.
    """
    fixed = check_protocol(options.protocol)
    n, seed = options.n if options.n is not None else fixed.pictures_per_prompt, options.seed
    if n < 1:
        raise InputError(f"-n must be at least 1, not {n}", None)
    if n > MAX_PICTURES or not 0 <= seed < 2**63 - n:
        raise InputError(f"-n {n} and --seed {seed} are out of bounds", f"-n at most {MAX_PICTURES}, --seed below 2^63")
    spelt = {card.placeholder.prompt(prompt): prompt for prompt in reversed(options.prompts)}
    groups: Mapping[str, tuple[str, ...]] = {"prompts": tuple(reversed(spelt.values()))}
    if not options.prompts:
        groups = prompt_groups(options.prompt_set or fixed.prompt_sets[0], base.entry.eval_prompts)
    text_prompts = frozenset(prompt for its in groups.values() for prompt in its)
    extra = tuple(prompt for prompt in fixed.identity_prompts if prompt not in text_prompts)
    said = {
        "prompts": "own" if options.prompts else _unless_among(options.prompt_set, fixed.prompt_sets),
        "pictures_per_prompt": _unless_among(options.n, (fixed.pictures_per_prompt,)),
        "judge": _unless_among(options.clip, (fixed.judge or base.entry.judge,)),
        "dino": _unless_among(options.dino, (fixed.dino,)) if fixed.dino else None,
    }
    if (count := n * (len(text_prompts) + len(extra))) > MAX_PICTURES:
        raise InputError(f"{count} pictures are too many at once", f"at most {MAX_PICTURES}; give a smaller -n")
    return Question(
        fixed,
        {**({"identity": extra} if extra else {}), **groups},
        frozenset(fixed.identity_prompts) or text_prompts,
        text_prompts,
        n,
        seed,
        options.clip or fixed.judge or base.entry.judge,
        None if options.dino == NO_JUDGE else options.dino or fixed.dino,
        settings_for(card, base, fixed.steps, fixed.guidance, None, fixed.scheduler),
        {name: value for name, value in said.items() if value is not None},
    )


def without_placeholder(prompt: str, placeholder: Placeholder) -> str:
    """The prompt as it is scored: "a photo of a [V] cat on the beach" -> "a photo of a cat on the beach".

    The token alone stands for the category too: "a photo of [V]" -> "a photo of cat".
    """
    return " ".join(_abstract(prompt, placeholder).replace("{}", placeholder.category).split())


def without_concept(prompt: str, placeholder: Placeholder) -> str | None:
    """What a prompt asks for beside the concept: "a photo of a red {} on the beach" -> "a photo, red, on the beach".

    None where nothing is left ("a {}").
    """
    parts: list[str] = []
    text, place = _abstract(prompt, placeholder), 0
    for phrase in _PHRASE.finditer(text):
        parts += [text[place : phrase.start()], phrase[1] or ""]
        place = phrase.end()
    parts.append(text[place:])
    return ", ".join(left for part in parts if (left := " ".join(part.split()).strip(" ,.;"))) or None


_PHRASE = re.compile(
    r"(?:\b(?:of|and) )?(?:\b(?:an?|the|my|one|this|that) ((?:(?!(?:an?|the|my|one|of|and)\b)[\w-]+ )*))?\{\}(?:'s)?",
    re.IGNORECASE,
)
"""The concept's whole noun phrase: "of a red {}"; its adjectives are the group."""


def _abstract(prompt: str, placeholder: Placeholder) -> str:
    """The prompt with `{}` wherever it names the concept."""
    return prompt.replace(f"{placeholder.token} {placeholder.category}", "{}").replace(placeholder.token, "{}")


def _unless_among(value: Any, fixed: Sequence[Any]) -> Any:
    """A value that departs from what is fixed; None where it does not."""
    return None if value in fixed else value
