"""`inspect-attn`: makes one picture and shows where each word of its prompt looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from attnbooth_cli.engine import concept
from attnbooth_cli.engine.attention import MapProcessor, processors
from attnbooth_cli.engine.generation import load_concept, settings_for, warn_of_long_prompts
from attnbooth_cli.engine.maps import MapRecorder, find_words, word_maps
from attnbooth_cli.engine.methods import StageName
from attnbooth_cli.engine.sampling import Request, sample
from attnbooth_cli.engine.tokens import maximum_length
from attnbooth_cli.engine.vocabulary import warn_of_unknown_words
from attnbooth_cli.engine.weights import write_tensors
from attnbooth_cli.errors import InputError
from attnbooth_cli.events import Advanced, Emit, ignore
from attnbooth_cli.project import durable
from attnbooth_cli.project.project import open_project
from attnbooth_cli.project.samples import free_name, save_picture, slug
from attnbooth_cli.reports.heatmaps import labelled_strip, overlay

POOLING = (
    "mean over cross-attention layers (bicubic to latent size), heads, steps and a word's tokens; conditional half"
)


@dataclass(frozen=True)
class Inspection:
    """Attributes:
    report: The JSON document, also in `folder/attention.json`.
    sheet: The picture and every word's map side by side.
    """

    folder: Path
    sheet: Path
    report: dict[str, Any]


def inspect_attention(
    root: Path | str,
    prompt: str,
    *,
    words: Sequence[str] = (),
    stage: StageName | None = None,
    resolution: int | None = None,
    seed: int = 0,
    device: str = "auto",
    emit: Emit = ignore,
) -> Inspection:
    """Generates the picture `generate` makes for this prompt and seed, with the attention of its words recorded.

    Args:
        words: All words of the prompt by default; `{}` or the token for [V].
        stage: The concept as it was after this stage.
        resolution: Only layers of this map height.

    Raises:
        InputError: a word is not in the prompt, or no layer has that resolution; otherwise as `generate`.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed must be between 0 and 2^63, not {seed}", None)
    project, _ = open_project(Path(root))
    card = concept.read_card(project)
    text = card.placeholder.prompt(prompt)
    loaded = load_concept(project, card, stage, device, "auto", emit)
    (encoder,) = loaded.components.text_encoders
    warn_of_long_prompts(loaded, [text], emit)
    warn_of_unknown_words(encoder.tokenizer, card.placeholder.token, [prompt], emit)
    length = maximum_length(encoder.tokenizer, encoder.model)
    chosen = find_words(encoder.tokenizer, card.placeholder, text, length, words)
    settings = settings_for(loaded.card, loaded.base)
    scale = loaded.components.pixels_per_latent
    columns = tuple(sorted({position for word in chosen for position in word.positions}))
    recorder = MapRecorder(columns, (settings.height // scale, settings.width // scale))
    emit(Advanced(0, settings.steps, "steps"))

    def after_step(step: int) -> None:
        emit(Advanced(step + 1, settings.steps, "steps"))
        if step == 0:
            word_maps(recorder, chosen, resolution)  # refuses a resolution no layer has, before the work is done

    prompting = loaded.components.prompting
    parts = prompting.parts if prompting else 1

    def receive(layer: str, probabilities: Tensor) -> None:
        recorder.add(layer, probabilities.chunk(parts)[0])

    with processors(loaded.components.unet, lambda name: MapProcessor(name, columns, receive)):
        (picture,) = sample(loaded.components, [Request(text, seed)], settings, between_steps=after_step)
    maps, layers = word_maps(recorder, chosen, resolution)
    peak = max(float(values.max()) for values in maps.values())
    folder = free_name(project.attention, f"{slug(prompt.replace('{}', card.placeholder.category))}-{seed}", "")
    metadata = {"schema": 1, "prompt": text, "seed": seed, **dataclasses.asdict(settings)}
    overlays = {word: overlay(picture, values.numpy(), peak) for word, values in maps.items()}
    picture_path = save_picture(folder, "picture", picture, metadata)
    paths = {word: save_picture(folder, f"map-{slug(word)}", image, metadata) for word, image in overlays.items()}
    sheet = save_picture(folder, "sheet", labelled_strip({"picture": picture, **overlays}), metadata)
    with durable.explained_write(folder):
        write_tensors(folder / "maps.safetensors", maps)
    report = {
        **metadata,
        "stage": loaded.stage,
        "run": card.run,
        "smoke": card.smoke,
        "pooling": POOLING,
        "layers": list(layers),
        "colour_scale": {"min": 0.0, "max": peak, "shared": True},
        "words": [
            {
                "word": word,
                "mean": float(values.mean()),
                "max": float(values.max()),
                "variance": float(values.var()),
                "map": str(paths[word]),
            }
            for word, values in maps.items()
        ],
        "picture": str(picture_path),
        "sheet": str(sheet),
    }
    durable.write_json(folder / "attention.json", report)
    return Inspection(folder, sheet, report)
