"""The pictures `eval` scores, kept: each is made once, whatever judges it, and an interrupted evaluation goes on.

    eval/pictures/<who and how>/<prompt>-<seed>.png

A picture's place is decided by everything that decides its pixels: the weights, the sampler's settings, the prompt and
the seed. So one that is there is right, and one that is not there is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attnbooth_cli.engine.families import Components
from attnbooth_cli.engine.sampling import BATCH_SIZE, Request, SamplingSettings, sample_missing
from attnbooth_cli.errors import BoothError
from attnbooth_cli.events import Advanced, Emit
from attnbooth_cli.project import durable, pictures
from attnbooth_cli.project.samples import METADATA_KEY, slug


@dataclass(frozen=True)
class Shelf:
    """Where the pictures of one subject under one sampler lie.

    Attributes:
        subject: What decides the weights, JSON: a run and its stage, or a base model, with hashes.
    """

    folder: Path
    subject: dict[str, Any]
    settings: SamplingSettings

    @property
    def place(self) -> Path:
        """The shelf's own folder."""
        return self.folder / _digest({"subject": self.subject, "settings": dataclasses.asdict(self.settings)})

    def path(self, request: Request) -> Path:
        """A picture's file."""
        return self.place / f"{slug(request.prompt, 40)}-{_digest(request.prompt)}-{request.seed}.png"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fill(
    shelf: Shelf,
    requests: Sequence[Request],
    components: Callable[[], Components],
    emit: Emit,
    batch_size: int = BATCH_SIZE,
) -> tuple[list[Path], int]:
    """Makes what is missing of `requests`, prompts batched together.

    Args:
        components: Loads the subject; called only if a picture is missing.
        emit: Told of every picture; may raise to stop.

    Returns:
        Every request's file, in order, and how many were made now.

    Raises:
        ResourceError: a picture cannot be written; what was written before is kept.
    """
    paths = [shelf.path(request) for request in requests]
    first = {path: place for place, path in reversed(list(enumerate(paths)))}  # of several alike, the first is made
    missing = sorted(place for path, place in first.items() if not _is_whole(path))
    done = len(requests) - len(missing)
    emit(Advanced(done, len(requests)))
    if missing:
        gone = {paths[place] for place in missing}
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        torn = sum(len({path in gone for path in batch}) == 2 for batch in batches)
        # One batch of which a part is there is where an interruption was: it is made as a whole, as it would have been.
        # Several are left by another question, such as a smaller n, whose pictures were in other batches anyway.
        places = missing if torn > 1 else range(len(requests))
        asked = [requests[place] for place in places]
        wanted = [
            number for number, place in enumerate(places) if paths[place] in gone and first[paths[place]] == place
        ]
        for number, picture in sample_missing(components(), asked, shelf.settings, wanted, batch_size):
            place = places[number]
            told = {**shelf.subject, **dataclasses.asdict(shelf.settings), **dataclasses.asdict(requests[place])}
            _save(paths[place], picture, told)
            done += 1
            emit(Advanced(done, len(requests)))
    return paths, len(missing)


def _is_whole(path: Path) -> bool:
    """Whether a picture is there and can be read; what is in its place otherwise is taken away."""
    try:
        pictures.load(path)
        return True
    except (BoothError, OSError):
        if path.is_dir():
            shutil.rmtree(path)
        return False


def _save(path: Path, picture: Image.Image, metadata: dict[str, Any]) -> None:
    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    durable.write_bytes(path, buffer.getvalue())
