"""The page `generate --report` writes: every picture of one call, and the command that makes it again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from attnbooth_cli.engine.concept import Card
from attnbooth_cli.engine.sampling import SamplingSettings
from attnbooth_cli.project.samples import save_new, slug
from attnbooth_cli.project.shell import generate_command
from attnbooth_cli.reports import page

MANY = 8
"""Prompts from which on there is a box to find one."""


@dataclass
class Gallery:
    """Takes the pictures as they are made, each made small at once: thousands of large ones would not fit in memory.

    Attributes:
        count: How many there will be.
        shown: By prompt.
    """

    count: int
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, picture: Image.Image, path: Path, prompt: str, seed: int) -> None:
        """Takes a picture and how it was made; `prompt` is as the person wrote it."""
        entry = {
            "src": page.embedded(picture, page.side_for(self.count), self.count),
            "small": page.is_small(picture),
            "name": path.name,
            "seed": seed,
        }
        self.shown.setdefault(prompt, []).append(entry)

    def save(
        self, folder: Path, card: Card, root: Path, stage: str, settings: SamplingSettings, device: str | None
    ) -> Path:
        """Writes the page under a free name and returns where it is.

        Args:
            root: The project, as the person named it.
            device: Only if one was asked for.

        Raises:
            ResourceError: it cannot be written.
        """
        how = dataclasses.asdict(settings)
        prompts = [
            {
                "prompt": prompt,
                "pictures": [
                    {
                        **entry,
                        "command": generate_command(
                            root, prompt, seed=entry["seed"], stage=stage, device=device, **how
                        ),
                    }
                    for entry in entries
                ],
            }
            for prompt, entries in self.shown.items()
        ]
        text = page.render(
            "generate.html",
            ("filter.js",),
            title=f"{card.placeholder.token}: {self.count} picture{'' if self.count == 1 else 's'}",
            token=card.placeholder.token,
            category=card.placeholder.category,
            smoke=card.smoke,
            facts={
                "Run": card.run,
                "After stage": stage,
                "Base model": card.document["base"]["model"],
                "Steps": settings.steps,
                "Guidance": f"{settings.guidance:g}",
                "Scheduler": settings.scheduler,
                "Size": f"{settings.width} x {settings.height}",
                "Negative prompt": settings.negative or None,
                "Device": device,
            },
            prompts=prompts,
            many=len(prompts) >= MANY,
        )
        first = next(iter(self.shown))
        return save_new(
            folder, f"report-{slug(first.replace('{}', card.placeholder.category))}", ".html", text.encode()
        )
