"""From a depiction to pixels: paint the scene, stand the things in it, render the style."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tools.tiny.art import SPRITE_SIZE
from tools.tiny.canvas import SIDE, Rng, X, Y
from tools.tiny.depiction import Depiction, Thing
from tools.tiny.instances import Wardrobe
from tools.tiny.scenes import ALL_SCENES
from tools.tiny.styles import stylise

HEIGHTS: dict[str | None, tuple[float, float]] = {None: (0.52, 0.78), "small": (0.28, 0.40), "large": (0.84, 0.98)}
"""Side of a thing's square as a part of the picture's, by size word: the range it is drawn from."""
PAIR_HEIGHTS = (0.42, 0.52)


@dataclass(frozen=True)
class Pose:
    """Where a thing stands: `height` of its square, centre `x` and lower edge `foot` (parts of the picture),
    `tilt` in degrees, and whether it looks the other way."""

    height: float
    x: float
    foot: float
    tilt: float
    mirrored: bool


def draw_pose(size: str | None, grounded: bool, rng: Rng, seat: int = 0) -> Pose:
    """A random pose. `seat` is 0 for a thing alone, -1 and 1 for the left and the right of two."""
    height = float(rng.uniform(*(PAIR_HEIGHTS if seat else HEIGHTS[size])))
    x = 0.5 + 0.25 * seat + float(rng.normal(0, 0.025 if seat else 0.06))
    if grounded:
        foot = float(np.clip(rng.normal(0.86, 0.035), 0.76, 0.95))
        foot = max(foot, height - 0.02)
    else:
        foot = 0.5 + height / 2 + float(rng.normal(0, 0.04))
    slack = max(0.0, 0.5 - height / 2) + 0.04
    x = float(np.clip(x, 0.5 - slack, 0.5 + slack))
    return Pose(height, x, foot, float(rng.normal(0, 4)), bool(rng.random() < 0.5))


def _standing(pixels: np.ndarray, stretch: float, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """A painted instance `[s, s, 4]` in its pose on an empty picture: colours `[SIDE, SIDE, 3]` and alpha."""
    sprite = Image.fromarray((pixels * 255 + 0.5).astype(np.uint8), "RGBA")
    if pose.mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if abs(pose.tilt) > 0.5:
        sprite = sprite.rotate(pose.tilt, Image.Resampling.BICUBIC, center=(SPRITE_SIZE / 2, SPRITE_SIZE))
    width, height = (max(2, round(pose.height * SIDE * s)) for s in (stretch**0.5, stretch**-0.5))
    sprite = sprite.resize((width, height), Image.Resampling.LANCZOS)
    layer = Image.new("RGBA", (SIDE, SIDE))
    layer.paste(sprite, (round(pose.x * SIDE - width / 2), round(pose.foot * SIDE - height)))
    values = np.asarray(layer, np.float32) / 255
    return values[..., :3], values[..., 3]


def _shadow(pose: Pose) -> np.ndarray:
    """How much darker the ground is under a thing, `[SIDE, SIDE]` in [0, 1]."""
    spread = np.square((X - pose.x) / (0.46 * pose.height)) + np.square((Y - pose.foot + 0.01) / 0.055)
    return np.clip(1 - spread, 0, 1)


def render(depiction: Depiction, wardrobe: Wardrobe, rng: Rng) -> np.ndarray:
    """The picture: uint8 `[SIDE, SIDE, 3]`."""
    backdrop = ALL_SCENES[depiction.scene].paint(rng)
    pixels = backdrop.pixels
    things: list[tuple[Thing, int]] = [(depiction.thing, 0)]
    if depiction.companion is not None:
        seat = 1 if rng.random() < 0.5 else -1
        things = [(depiction.thing, seat), (depiction.companion, -seat)]
    for thing, seat in things:
        pose = draw_pose(depiction.size, backdrop.grounded, rng, seat)
        rgb, alpha = _standing(wardrobe.paint(thing.instance), thing.instance.stretch, pose)
        if backdrop.grounded:
            pixels = pixels * (1 - 0.45 * _shadow(pose))[..., None]
        pixels = pixels + alpha[..., None] * (rgb - pixels)
    return (stylise(pixels, depiction.style, rng) * 255 + 0.5).astype(np.uint8)
