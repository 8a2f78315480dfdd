"""`eval`: identity and text similarity of a concept, with everything that makes the numbers comparable beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnbooth_cli.engine.base_models import resolve_judge
from attnbooth_cli.engine.devices import resolve_device
from attnbooth_cli.engine.generation import load_concept, settings_for, warn_of_long_prompts
from attnbooth_cli.engine.metrics import identity_score, image_features, load_judge, text_features, text_score
from attnbooth_cli.engine.prompts import EVALUATION_PROMPTS
from attnbooth_cli.engine.sampling import Request, sample
from attnbooth_cli.engine.tokens import Placeholder
from attnbooth_cli.errors import GateError, InputError
from attnbooth_cli.events import Advanced, Emit, Warned, ignore
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.project import images_folder, open_project
from attnbooth_cli.project.samples import free_name, save_picture, slug

PROTOCOL = "attnbooth-simple-1"
"""Names what the numbers mean; it changes whenever they would not be comparable."""

PICTURES_PER_PROMPT = 2


@dataclass(frozen=True)
class Scores:
    """Attributes:
    identity: Mean cosine over all pairs (training picture, generated picture).
    text: Mean cosine between generated pictures and their prompt without the placeholder token.
    report: The JSON document, everything included; also written to `path`.
    """

    identity: float
    text: float
    report: dict[str, Any]
    path: Path


def evaluate(
    root: Path | str,
    *,
    prompts: Sequence[str] = (),
    n: int = PICTURES_PER_PROMPT,
    clip: str | None = None,
    device: str = "auto",
    emit: Emit = ignore,
) -> Scores:
    """Generates `n` pictures of each prompt and scores them.

    Args:
        prompts: The base model's own evaluation prompts by default.
        clip: The judge; ViT-B/32 for real base models, the bundled one for the bundled model.

    Raises:
        InputError, DamagedError, BaseModelError, ResourceError: see `errors`.
    """
    if n < 1:
        raise InputError(f"-n must be at least 1, not {n}", None)
    project, manifest = open_project(Path(root))
    loaded = load_concept(project, None, device, "auto", emit)
    placeholder = loaded.card.placeholder
    prompts = tuple(prompts) or EVALUATION_PROMPTS[loaded.base.entry.eval_prompts]
    requests = [Request(placeholder.prompt(text), i) for text in prompts for i in range(n)]
    warn_of_long_prompts(loaded, [request.prompt for request in requests], emit)
    judge_ref = clip or loaded.base.entry.judge
    judge_folder = resolve_judge(judge_ref, download=True, say=lambda text: emit(Warned(text)))
    judge = load_judge(judge_folder, resolve_device(device))
    paths = [picture.path for picture in pictures.survey([images_folder(project, manifest)]).pictures]
    references = image_features(judge, [pictures.load(path) for path in paths])
    settings = settings_for(loaded)
    generated: list[Image.Image] = []
    emit(Advanced(0, len(requests)))
    for picture in sample(loaded.components, requests, settings):
        generated.append(picture)
        emit(Advanced(len(generated), len(requests)))
    features = image_features(judge, generated)
    texts = [without_placeholder(text, placeholder) for text in prompts]
    per_prompt: list[dict[str, Any]] = [
        {
            "prompt": text,
            "scored_as": scored_as,
            "identity": identity_score(references, features[i * n : (i + 1) * n]),
            "text": text_score(features[i * n : (i + 1) * n], text_feature),
        }
        for i, (text, scored_as, text_feature) in enumerate(
            zip(prompts, texts, text_features(judge, texts), strict=True)
        )
    ]
    folder = free_name(project.evaluation, f"{loaded.card.run}-{loaded.stage}", "")
    files = [
        save_picture(
            folder / "pictures", f"{slug(request.prompt)}-{request.seed}", picture, dataclasses.asdict(request)
        )
        for request, picture in zip(requests, generated, strict=True)
    ]
    identity = sum(row["identity"] for row in per_prompt) / len(per_prompt)
    text = sum(row["text"] for row in per_prompt) / len(per_prompt)
    report = {
        "identity": identity,
        "text": text,
        "protocol": {
            "name": PROTOCOL,
            "judge": judge_ref,
            "judge_revision": judge_folder.name if judge_ref.count("/") == 1 else None,
            "preprocessing": judge.preprocessing,
            "references": len(paths),
            "prompts": len(prompts),
            "pictures_per_prompt": n,
            "seeds": list(range(n)),
            **dataclasses.asdict(settings),
        },
        "run": loaded.card.run,
        "stage": loaded.stage,
        "smoke": loaded.card.smoke,
        "base": loaded.card.document["base"],
        "per_prompt": per_prompt,
        "pictures": [str(path) for path in files],
    }
    path = folder / "scores.json"
    durable.write_text(path, json.dumps(report, indent=2, ensure_ascii=False, default=str) + "\n")
    return Scores(identity, text, report, path)


def check_gates(scores: Scores, min_identity: float | None, min_text: float | None) -> None:
    """Compares scores with the gates that were given.

    Raises:
        GateError: one is not met; the message says by how much.
    """
    gates = (("identity", scores.identity, min_identity), ("text", scores.text, min_text))
    missed = [
        f"{name} is {score:.4f}, {minimum - score:.4f} below the gate of {minimum:g}"
        for name, score, minimum in gates
        if minimum is not None and not score >= minimum
    ]
    if missed:
        raise GateError("; ".join(missed), f"details are in {scores.path}")


def without_placeholder(prompt: str, placeholder: Placeholder) -> str:
    """The prompt as it is scored: "a photo of a [V] cat on the beach" -> "a photo of a cat on the beach"."""
    text = prompt.replace("{}", placeholder.category).replace(placeholder.token, "")
    return " ".join(text.split())
