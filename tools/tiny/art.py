"""The art the world is drawn from: four emoji sets of the npm registry, rasterised to sprites.

Every sprite is one emoji of one set, cropped to its ink and fitted into a square of `SPRITE_SIZE` pixels, standing on
the lower edge. Archives are checked against a pinned SHA-256, so that the same recipe starts from the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tools.tiny.objects import NOUNS

SPRITE_SIZE = 96
"""Side of a sprite in pixels: half as large again as a whole picture, so that every placement scales it down."""


@dataclass(frozen=True)
class ArtSet:
    """One published set of emoji pictures."""

    name: str
    package: str
    version: str
    sha256: str
    licence: str
    credit: str

    @property
    def archive(self) -> str:
        """File name `npm pack` gives the package's archive."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


ART_SETS = (
    ArtSet(
        "fluent-3d",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        "Fluent Emoji, (c) Microsoft Corporation; packaged by LobeHub",
    ),
    ArtSet(
        "fluent-flat",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent Emoji, (c) Microsoft Corporation; packaged by Iconify",
    ),
    ArtSet(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji, (c) Google LLC; packaged by Iconify",
    ),
    ArtSet(
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji, (c) Twitter, Inc and other contributors; packaged by Iconify",
    ),
)


@dataclass(frozen=True)
class Sprite:
    """One rasterised emoji: `pixels` is uint8 `[SPRITE_SIZE, SPRITE_SIZE, 4]`, straight (not premultiplied) alpha."""

    art: str
    """`set/emoji`, for example `noto/black-cat`."""
    noun: str
    pixels: np.ndarray


def fetch(folder: Path) -> None:
    """Download the archives that `folder` lacks with `npm pack` and check all of them.

    Raises `ValueError` when an archive's SHA-256 is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for art_set in ART_SETS:
        archive = folder / art_set.archive
        if not archive.exists():
            command = ["npm", "pack", f"{art_set.package}@{art_set.version}", "--pack-destination", str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != art_set.sha256:
            raise ValueError(f"{archive.name} has SHA-256 {found}, not the pinned {art_set.sha256}")


def _fit(picture: Image.Image) -> np.ndarray:
    """Crop to what is visible, scale to the sprite's size, stand it on the lower edge."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 20 else 0).getbbox()
    picture = picture.crop(box)
    scale = SPRITE_SIZE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SPRITE_SIZE, SPRITE_SIZE))
    canvas.paste(picture, ((SPRITE_SIZE - width) // 2, SPRITE_SIZE - height))
    return np.array(canvas)


class _Iconify:
    """An `@iconify-json` archive: SVG bodies by icon name, icon names by code point."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            self.icons = json.load(tar.extractfile("package/icons.json"))  # type: ignore[arg-type]
            self.characters = json.load(tar.extractfile("package/chars.json"))  # type: ignore[arg-type]

    def draw(self, code_point: str) -> Image.Image:
        import cairosvg  # here, because only who rebuilds the world has it

        name = self.characters.get(code_point) or self.characters[f"{code_point}-fe0f"]
        while name not in self.icons["icons"]:
            name = self.icons["aliases"][name]["parent"]
        icon = self.icons["icons"][name]
        width, height = (icon.get(side, self.icons.get(side, 16)) for side in ("width", "height"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        )
        size = 2 * SPRITE_SIZE
        return Image.open(io.BytesIO(cairosvg.svg2png(svg.encode(), output_width=size, output_height=size)))


def rasterise(folder: Path) -> list[Sprite]:
    """Every sprite of every noun, in the order of `NOUNS`, its emoji and `ART_SETS`.

    An emoji that a set lacks is left out (the 3D set has no brown mushroom).
    """
    vector = {art_set.name: _Iconify(folder / art_set.archive) for art_set in ART_SETS[1:]}
    code_points: dict[str, str] = {}
    for code_point, name in vector["fluent-flat"].characters.items():
        code_points.setdefault(name, code_point)
    sprites: list[Sprite] = []
    with tarfile.open(folder / ART_SETS[0].archive) as three_dimensional:
        members = set(three_dimensional.getnames())
        for noun, emoji in NOUNS.items():
            for name in emoji:
                code_point = code_points[name].removesuffix("-fe0f")
                files = [f"package/assets/{code_point}{suffix}.webp" for suffix in ("", "-fe0f")]
                for file in filter(members.__contains__, files):
                    picture = Image.open(three_dimensional.extractfile(file))  # type: ignore[arg-type]
                    sprites.append(Sprite(f"fluent-3d/{name}", noun, _fit(picture)))
                    break
                sprites += [
                    Sprite(f"{key}/{name}", noun, _fit(icons.draw(code_point))) for key, icons in vector.items()
                ]
    return sprites


def save_sprites(sprites: list[Sprite], file: Path) -> None:
    """One compressed numpy archive; see `load_sprites`."""
    np.savez_compressed(
        file,
        pixels=np.stack([sprite.pixels for sprite in sprites]),
        art=np.array([sprite.art for sprite in sprites]),
        noun=np.array([sprite.noun for sprite in sprites]),
    )


def load_sprites(file: Path) -> list[Sprite]:
    """What `save_sprites` wrote."""
    with np.load(file) as archive:
        rows = zip(archive["art"], archive["noun"], archive["pixels"], strict=True)
        return [Sprite(str(art), str(noun), pixels) for art, noun, pixels in rows]
