"""Generated pictures on disk: never overwritten, and each PNG carries how it was made."""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attnbooth_cli.errors import BoothError
from attnbooth_cli.project import durable, pictures

METADATA_KEY = "attnbooth"
"""The PNG text chunk that holds the JSON object `save_picture` was given."""


def save_picture(folder: Path, stem: str, picture: Image.Image, metadata: Mapping[str, Any]) -> Path:
    """Writes `folder/stem.png`, or `stem-2.png` and so on if that exists.

    Args:
        metadata: JSON object: prompt, seed and settings.

    Returns:
        Where the picture is.

    Raises:
        ResourceError: it cannot be written.
    """
    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return save_new(folder, stem, ".png", buffer.getvalue())


def save_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Writes a file under the first name that is free, and returns where it is.

    Raises:
        ResourceError: it cannot be written.
    """
    while True:
        path = free_name(folder, stem, suffix)
        try:
            durable.write_new_bytes(path, data)
        except FileExistsError:
            continue  # another process took the name in between
        return path


def find_pictures(folder: Path, stems: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> dict[int, Path]:
    """Which of the pictures `save_picture` would write are in `folder` already, made in just this way.

    Args:
        stems, metadata: Of each picture; two that are alike are two files.

    Returns:
        Place in `stems` -> the file.
    """
    found: dict[int, Path] = {}
    for place, (stem, wanted) in enumerate(zip(stems, metadata, strict=True)):
        number, path = 2, folder / f"{stem}.png"
        while path.exists() and place not in found:
            if path not in found.values() and _recorded(path) == json.loads(json.dumps(wanted)):
                found[place] = path
            number, path = number + 1, folder / f"{stem}-{number}.png"
    return found


def _recorded(path: Path) -> dict[str, Any] | None:
    """`read_metadata` of a whole picture; None of anything else."""
    try:
        pictures.load(path)  # a plain file of bearable size, whoever put it there
        return read_metadata(path)
    except (BoothError, OSError, ValueError, SyntaxError):
        return None


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What `save_picture` recorded in a PNG, or None.

    Raises:
        OSError, ValueError, SyntaxError: it is no PNG, or what it records is not JSON.
    """
    with Image.open(path, formats=["PNG"]) as picture:
        text = picture.info.get(METADATA_KEY)
    try:
        return json.loads(text) if isinstance(text, str) else None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """`folder/stem+suffix`, or the first of `stem-2`, `stem-3`, ... that does not exist."""
    path, number = folder / f"{stem}{suffix}", 2
    while os.path.lexists(path):  # also a link to nothing takes a name
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path


def slug(text: str, length: int = 60) -> str:
    """A prompt as part of a file name: lower-case ASCII words joined by hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:length].rstrip("-") or "picture"
