"""The frame of every HTML page: one file, no network, nothing that runs but the page's own script.

Templates are in `templates/`: `frame.html` with the design (`report.css`) and the behaviour (`report.js`) that all
pages share, one template a kind of page, and `pieces.html` with the macros they are made of. Everything a template is
given is escaped; and the content-security policy names the hash of the script, so that nothing else could run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from attnbooth_cli import __version__
from attnbooth_cli.project import durable
from attnbooth_cli.reports.units import duration

LARGEST_SIDE = 512
"""Pixels of an embedded picture, at most."""
PICTURE_BYTES = 3_500_000
"""What all pictures of a page may weigh together before base64, which adds a third: a page stays under 5 MB."""
BYTES_PER_PIXEL = 0.2
"""Of WebP at `QUALITY`, generously: photographs need about 0.1."""
QUALITY = 85
SMALL_SIDE = 96
"""Pictures that are no larger than this are kept exactly: WebP's blur would be all one sees of them."""
SMALL_BYTES = 14_000
"""Of such a picture, generously; if they are too many for that, they are blurred after all."""


def write_page(path: Path, template: str, scripts: Sequence[str] = (), **values: Any) -> Path:
    """Writes a page.

    Args:
        template: Of `templates/`, "train.html".
        scripts: Further scripts of `templates/` that it needs, after `report.js`.
        values: What the template names; `title` is always needed.

    Raises:
        ResourceError: it cannot be written.
    """
    durable.write_text(path, render(template, scripts, **values))
    return path


def render(template: str, scripts: Sequence[str] = (), **values: Any) -> str:
    """A page as text; see `write_page`."""
    script = "\n".join(_text(name) for name in ("report.js", *scripts))
    style = _text("report.css")
    return (
        _environment()
        .get_template(template)
        .render(
            script=Markup(script),
            style=Markup(style),
            script_hash=_csp_hash(script),
            style_hash=_csp_hash(style),
            version=__version__,
            **values,
        )
    )


def embedded(picture: Path | Image.Image, side: int = LARGEST_SIDE, count: int = 1) -> str:
    """A picture as a data: address, made smaller where a side is longer than `side` pixels.

    Args:
        count: How many pictures the page has.
    """
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            return embedded(opened.convert("RGB"), side, count)
    shown = picture.copy()
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    exact = is_small(picture) and count * SMALL_BYTES <= PICTURE_BYTES
    shown.save(buffer, format="WEBP", quality=QUALITY, lossless=exact)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def is_small(picture: Image.Image) -> bool:
    """Whether a picture is so small that it is shown enlarged, with its pixels sharp."""
    return max(picture.size) <= SMALL_SIDE


def side_for(count: int) -> int:
    """The side at which `count` square pictures together stay within `PICTURE_BYTES`."""
    affordable = int((PICTURE_BYTES / max(count, 1) / BYTES_PER_PIXEL) ** 0.5)
    return min(LARGEST_SIDE, max(affordable, 64))


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _text(name: str) -> str:
    return (files("attnbooth_cli.reports") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("attnbooth_cli.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    return environment
