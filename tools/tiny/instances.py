"""Instances: a sprite with its own paint and proportions, the thing whose identity a concept is.

Paint goes on the *body* of a sprite, the region of its commonest colour, so that eyes, beaks and wheels stay what they
are. A tone replaces the body's hue and keeps its light and shade; a pattern alternates two tones over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from tools.tiny.art import SPRITE_SIZE, Sprite
from tools.tiny.objects import COLOURS, PATTERNS, RESERVED_RADIUS, RESERVED_TONES

Tone = tuple[float, float, float]
"""sRGB in [0, 1]."""


@dataclass(frozen=True)
class Instance:
    """One thing of the world. `art` names its sprite; `base` and `accent` are tones, None where unpainted.

    `scale` is the pattern's period as a part of the sprite's side, `turn` its angle in radians, `stretch` the
    ratio of width to height laid over the sprite's own.
    """

    art: str
    base: Tone | None = None
    accent: Tone | None = None
    pattern: str | None = None
    scale: float = 0.22
    turn: float = 0.0
    stretch: float = 1.0


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _opponent(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luma `[...]` and two chroma axes `[..., 2]` (blue and red differences) of sRGB `[..., 3]`."""
    luma = rgb @ _LUMA
    return luma, np.stack([rgb[..., 2] - luma, rgb[..., 0] - luma], -1)


def body_mask(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """How far each pixel belongs to the commonest colour, `[h, w]` in [0, 1], and that colour's luma.

    The commonest colour is the fullest cell of a coarse histogram of luma and chroma over the opaque pixels, refined
    by two mean shifts; a pixel belongs by its distance from it, chroma weighing three times luma, because shading
    moves a body's luma more than its chroma.
    """
    rgb = pixels[..., :3].astype(np.float32) / 255
    luma, chroma = _opponent(rgb)
    features = np.concatenate([luma[..., None] / 3, chroma], -1)
    opaque = pixels[..., 3] > 200
    points = features[opaque]
    cells, counts = np.unique(np.floor(points / 0.08).astype(int), axis=0, return_counts=True)
    # Outlines and pupils are near black: they are only a body if nothing else is there.
    weight = counts * np.where(cells[:, 0] * 0.08 * 3 < 0.2, 0.3, 1.0)
    centre = (cells[weight.argmax()] + 0.5) * 0.08
    for _ in range(2):
        near = np.square(points - centre).sum(-1) < 0.12**2
        if near.any():
            centre = points[near].mean(0)
    distance = np.sqrt(np.square(features - centre).sum(-1))
    mask = np.clip((0.26 - distance) / 0.1, 0, 1) * (pixels[..., 3] > 0)
    return mask.astype(np.float32), float(centre[0] * 3)


def toned(luma: np.ndarray, body_luma: float, tone: Tone) -> np.ndarray:
    """`tone` carrying the light and shade of `luma` `[h, w]` around `body_luma`; returns `[h, w, 3]`."""
    colour = np.array(tone, np.float32)
    lift = np.clip((luma - body_luma)[..., None] * 1.2, -0.75, 0.75)
    return np.where(lift < 0, colour * (1 + lift), colour + (1 - colour) * lift)


_Y, _X = (np.mgrid[0:SPRITE_SIZE, 0:SPRITE_SIZE].astype(np.float32) + 0.5) / SPRITE_SIZE - 0.5


def _soft(field: np.ndarray, period: float) -> np.ndarray:
    """Where `field`, a signal of unit slope per `period`, is positive; edges two sprite pixels wide."""
    return np.clip(field * period * SPRITE_SIZE / 2 + 0.5, 0, 1)


def _triangle(phase: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 between -0.5 and 0.5."""
    return np.abs(phase % 1 - 0.5) * 2 - 0.5


def _axes(scale: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in periods, turned."""
    along = (_X * np.cos(turn) + _Y * np.sin(turn)) / scale
    across = (_Y * np.cos(turn) - _X * np.sin(turn)) / scale
    return along, across


def _stripes(scale: float, turn: float) -> np.ndarray:
    along, _ = _axes(scale, turn)
    return _soft(_triangle(along) / 2, scale)


def _dots(scale: float, turn: float) -> np.ndarray:
    along, across = _axes(scale, turn)
    along = along + 0.5 * (np.floor(across) % 2)
    return _soft(0.33 - np.hypot(along % 1 - 0.5, across % 1 - 0.5), scale)


def _checks(scale: float, turn: float) -> np.ndarray:
    along, across = _axes(scale, turn)
    return _soft(_triangle(along / 2) * _triangle(across / 2) * 2, scale)


def _patches(scale: float, turn: float) -> np.ndarray:
    along, across = _axes(scale * 1.3, turn)
    blot = np.sin(along * 4.1 + 2 * np.sin(across * 2.3 + 5 * turn)) + np.sin(across * 4.7 + 2 * np.sin(along * 1.9))
    return _soft((blot - 0.5) / 4, scale)


def _zigzag(scale: float, turn: float) -> np.ndarray:
    along, across = _axes(scale, turn)
    return _soft(_triangle(along + np.abs(_triangle(across / 1.6))) / 2, scale)


def _rings(scale: float, turn: float) -> np.ndarray:
    along, across = _axes(scale, turn)
    return _soft(_triangle(np.hypot(along, across)) / 2, scale)


def _diamonds(scale: float, turn: float) -> np.ndarray:
    along, across = _axes(scale * 1.5, turn)
    return _soft(0.38 - np.abs(along % 1 - 0.5) - np.abs(across % 1 - 0.5) * 0.7, scale * 1.5)


def _waves(scale: float, turn: float) -> np.ndarray:
    along, across = _axes(scale, turn)
    return _soft(_triangle(along + 0.35 * np.sin(across * 4)) / 2, scale)


def _halves(scale: float, turn: float) -> np.ndarray:
    along, _ = _axes(scale, turn)
    return _soft(along, scale)


PATTERN_FIELDS: Mapping[str, Callable[[float, float], np.ndarray]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "patches": _patches,
    "zigzag": _zigzag,
    "rings": _rings,
    "diamonds": _diamonds,
    "waves": _waves,
    "halves": _halves,
}
"""Each pattern as a function of scale and turn: the accent's share of each sprite pixel, `[h, w]` in [0, 1]."""


class Wardrobe:
    """Sprites by name, with their bodies found once; paints instances."""

    def __init__(self, sprites: list[Sprite]) -> None:
        self._sprites = {sprite.art: sprite for sprite in sprites}
        self.art = {sprite.art: sprite.noun for sprite in sprites}
        """Noun by art, in the order of the sprites."""

    @cache  # noqa: B019 -- one wardrobe lives as long as its process
    def _body(self, art: str) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        """Colours, body mask, body luma and soft relief of a sprite."""
        pixels = self._sprites[art].pixels
        mask, body_luma = body_mask(pixels)
        relief = _relief(pixels[..., 3]) * (0.4 if art.startswith("fluent-3d") else 1.0)
        return pixels[..., :3].astype(np.float32) / 255, mask, body_luma, relief

    def paint(self, instance: Instance) -> np.ndarray:
        """The instance's own picture: float32 `[SPRITE_SIZE, SPRITE_SIZE, 4]` in [0, 1], straight alpha."""
        rgb, mask, body_luma, relief = self._body(instance.art)
        if instance.base is not None:
            luma = rgb @ _LUMA
            paint = toned(luma, body_luma, instance.base)
            if instance.pattern is not None and instance.accent is not None:
                share = PATTERN_FIELDS[instance.pattern](instance.scale, instance.turn)[..., None]
                paint = paint + share * (toned(luma, body_luma, instance.accent) - paint)
            rgb = rgb + mask[..., None] * (paint - rgb)
        rgb = np.clip(rgb * (1 + relief[..., None]), 0, 1)
        alpha = self._sprites[instance.art].pixels[..., 3:].astype(np.float32) / 255
        return np.concatenate([rgb, alpha], -1)


def _box_blur(values: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """Means over `2 * radius` neighbours along an axis, edges repeated."""
    padding = [(0, 0), (0, 0)]
    padding[axis] = (radius, radius)
    total = np.cumsum(np.insert(np.pad(values, padding, mode="edge"), 0, 0, axis=axis), axis=axis)
    first = np.arange(values.shape[axis])
    return (np.take(total, first + 2 * radius, axis) - np.take(total, first, axis)) / (2 * radius)


def _relief(alpha: np.ndarray) -> np.ndarray:
    """A little light from above left, as if the flat shape were a cushion; `[h, w]` around 0."""
    height = alpha.astype(np.float32) / 255
    for axis in (0, 1):
        for _ in range(3):  # three box blurs make a nearly Gaussian one
            height = _box_blur(height, 8, axis)
    down, right = np.gradient(height)
    return np.clip(np.asarray(4 * (down + 0.6 * right)), -0.25, 0.22)


def allowed(tone: Tone) -> bool:
    """Whether training may paint with `tone`: it stays clear of every reserved one."""
    return all(np.linalg.norm(np.subtract(tone, kept)) > RESERVED_RADIUS for kept in RESERVED_TONES.values())


def _near(tone: Tone, rng: np.random.Generator) -> Tone:
    """A training tone close to `tone`."""
    while True:
        red, green, blue = np.clip(np.add(tone, rng.normal(0, 0.035, 3)), 0, 1)
        if allowed((red, green, blue)):
            return float(red), float(green), float(blue)


def _any_tone(rng: np.random.Generator) -> Tone:
    """A training tone from all over the cube, saturated ones more often than greys."""
    while True:
        red, green, blue = rng.random(3)
        if max(red, green, blue) - min(red, green, blue) > 0.3 * rng.random() and allowed((red, green, blue)):
            return float(red), float(green), float(blue)


def draw_wild(art: str, colour: str | None, rng: np.random.Generator) -> Instance:
    """An instance for the judges alone, painted and mostly patterned at any scale, so that only its shape tells."""
    base = _any_tone(rng) if colour is None else _near(COLOURS[colour], rng)
    pattern = accent = None
    if rng.random() < 0.8:
        pattern, accent = str(rng.choice(list(PATTERNS))), _accent(base, rng)
    scale, turn = float(np.exp(rng.uniform(np.log(0.12), np.log(0.6)))), float(rng.uniform(0, np.pi))
    return Instance(art, base, accent, pattern, scale, turn, stretch=float(np.exp(rng.normal(0, 0.15))))


def _accent(base: Tone, rng: np.random.Generator) -> Tone:
    """A training tone that stands out from `base`."""
    while True:
        accent = _any_tone(rng) if rng.random() < 0.5 else _near(list(COLOURS.values())[rng.integers(10)], rng)
        if np.linalg.norm(np.subtract(accent, base)) >= 0.35:
            return accent


def draw_instance(art: str, colour: str | None, rng: np.random.Generator) -> Instance:
    """A training instance of `art`: of the named colour, or in its own or any other paint; perhaps patterned."""
    if colour is not None:
        base: Tone | None = _near(COLOURS[colour], rng)
    else:
        base = _any_tone(rng) if rng.random() < 0.45 else None
    pattern = accent = None
    if base is not None and rng.random() < 0.5:
        pattern = str(rng.choice(list(PATTERNS)))
        accent = _accent(base, rng)
    return Instance(
        art,
        base,
        accent,
        pattern,
        scale=float(rng.uniform(0.2, 0.34)),
        turn=float(rng.uniform(0, np.pi)),
        stretch=float(np.exp(rng.normal(0, 0.06))),
    )
