"""The sixteen scenes and the plain backgrounds, each a few strokes of numpy, no two pictures of one alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tools.tiny.canvas import SIDE, Rng, X, Y, colour, gradient, inside, mix, noise, shade


@dataclass(frozen=True)
class Backdrop:
    """A painted scene, `pixels` float32 `[SIDE, SIDE, 3]`, and whether things cast a shadow on its ground."""

    pixels: np.ndarray
    grounded: bool = True


def _horizon(rng: Rng) -> float:
    return float(rng.uniform(0.42, 0.56))


def _wave(height: float, amplitude: float, rng: Rng, slow: float = 3.0, fast: float = 7.0) -> np.ndarray:
    """A wavy line across the picture: its height at each x, `[SIDE, SIDE]`."""
    return height + amplitude * np.sin(X * rng.uniform(slow, fast) + rng.uniform(0, 6.3))


def _sky(horizon: float, rng: Rng) -> np.ndarray:
    return gradient(shade(colour(0.36, 0.62, 0.95), rng), shade(colour(0.76, 0.89, 0.98), rng), 0, horizon)


def _beach(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    sea = gradient(shade(colour(0.04, 0.42, 0.70), rng), shade(colour(0.16, 0.74, 0.80), rng), h - 0.18, h)
    edge = _wave(h, 0.03, rng)
    pixels = mix(_sky(h - 0.18, rng), sea, inside(Y - (h - 0.18)))
    pixels = mix(pixels, colour(0.97, 0.98, 0.97), inside(Y - edge + 0.02))
    sand = shade(colour(0.94, 0.82, 0.56), rng) * (1 - 0.14 * noise(12, rng))[..., None]
    return Backdrop(mix(pixels, sand, inside(Y - edge)))


def _snow(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    sky = gradient(shade(colour(0.58, 0.68, 0.84), rng), shade(colour(0.80, 0.87, 0.95), rng), 0, h)
    ground = colour(0.95, 0.97, 1.0) - 0.12 * noise(6, rng)[..., None] * colour(1, 0.7, 0.3)
    pixels = mix(sky, ground, inside(Y - _wave(h, 0.04, rng)))
    for _ in range(rng.integers(14, 24)):
        pixels = mix(
            pixels, colour(1, 1, 1), inside(rng.uniform(0.008, 0.016) - np.hypot(X - rng.random(), Y - rng.random()))
        )
    return Backdrop(pixels)


def _forest(rng: Rng) -> Backdrop:
    h = _horizon(rng) + 0.14
    pixels = shade(colour(0.08, 0.27, 0.11), rng, 0.03) + 0.22 * noise(10, rng)[..., None] * colour(0.5, 1, 0.4)
    bark = shade(colour(0.36, 0.22, 0.12), rng)
    for _ in range(rng.integers(4, 7)):
        trunk = inside(rng.uniform(0.025, 0.05) - np.abs(X - rng.random() - 0.02 * np.sin(Y * 4)))
        pixels = mix(pixels, bark * (0.7 + 0.5 * noise(12, rng))[..., None], trunk)
    moss = shade(colour(0.15, 0.31, 0.10), rng, 0.03) + 0.14 * noise(16, rng)[..., None] * colour(0.6, 1, 0.4)
    return Backdrop(mix(pixels, moss, inside(Y - h)))


def _meadow(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    grass = gradient(shade(colour(0.48, 0.80, 0.32), rng), shade(colour(0.22, 0.60, 0.15), rng), h, 1)
    grass = grass + 0.12 * (noise(20, rng) - 0.5)[..., None] * colour(0.8, 1, 0.4)
    return Backdrop(mix(_sky(h, rng), grass, inside(Y - _wave(h, 0.02, rng))))


def _desert(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    pixels = gradient(shade(colour(0.56, 0.76, 0.90), rng), shade(colour(0.98, 0.88, 0.66), rng), 0, h)
    for k in range(3):
        dune = shade(colour(0.92 - 0.07 * k, 0.60 - 0.06 * k, 0.28 - 0.02 * k), rng, 0.02)
        pixels = mix(
            pixels, dune * (1 - 0.08 * noise(8, rng))[..., None], inside(Y - _wave(h - 0.05 + 0.14 * k, 0.06, rng))
        )
    return Backdrop(pixels)


def _city(rng: Rng) -> Backdrop:
    h = _horizon(rng) + 0.2
    pixels = gradient(shade(colour(0.50, 0.60, 0.76), rng), shade(colour(0.80, 0.80, 0.82), rng), 0, h).copy()
    lit = shade(colour(0.98, 0.88, 0.50), rng)
    left = -int(rng.integers(0, 6))
    while left < SIDE:
        width, top = int(rng.integers(9, 15)), int(rng.uniform(0.05, 0.4) * SIDE)
        wall = shade(colour(0.36, 0.38, 0.46), rng, 0.06)
        pixels[top:, max(left, 0) : max(left + width - 1, 0)] = wall
        for y in range(top + 2, int(h * SIDE), 5):
            for x in range(left + 2, left + width - 3, 4):
                if x >= 0:
                    pixels[y : y + 3, x : x + 2] = lit if rng.random() < 0.65 else wall * 0.75
        left += width
    return Backdrop(mix(pixels, shade(colour(0.52, 0.52, 0.54), rng), inside(Y - h)))


def _space(rng: Rng) -> Backdrop:
    cloud = np.clip(noise(5, rng) - 0.45, 0, 1)[..., None]
    pixels = shade(colour(0.03, 0.03, 0.12), rng, 0.02) + 0.5 * cloud * shade(colour(0.8, 0.3, 0.95), rng)
    for _ in range(rng.integers(18, 34)):
        star = inside(rng.uniform(0.006, 0.014) - np.hypot(X - rng.random(), Y - rng.random()))
        pixels = mix(pixels, colour(1, 1, 0.95), star)
    x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.24), rng.uniform(0.07, 0.12)
    planet = shade(colour(0.85, 0.80, 0.68), rng, 0.08) * (1 - 0.3 * noise(8, rng))[..., None]
    return Backdrop(mix(pixels, planet, inside(radius - np.hypot(X - x, Y - y))), grounded=False)


def _water(rng: Rng) -> Backdrop:
    ripple = np.sin(Y * rng.uniform(38, 52) + 5 * noise(8, rng) + rng.uniform(0, 6.3))
    sea = gradient(shade(colour(0.26, 0.70, 0.90), rng), shade(colour(0.03, 0.30, 0.66), rng))
    return Backdrop(sea + 0.08 * ripple[..., None] * colour(0.6, 0.9, 1), grounded=False)


def _wooden_floor(rng: Rng) -> Backdrop:
    h = _horizon(rng) - 0.05
    wall = shade(colour(0.90, 0.86, 0.78), rng) * (1 - 0.05 * noise(3, rng))[..., None]
    across = (X - 0.5) / (Y - h + 0.3) * 2.6 + 10.5 + rng.uniform(-0.3, 0.3)
    seam = np.clip((0.08 - np.abs(across % 1 - 0.5)) * 12, 0, 1)
    grain = shade(colour(0.64, 0.41, 0.21), rng) * (0.88 + 0.22 * noise(12, rng))[..., None]
    board = mix(grain, grain * 0.6, seam) * (0.92 + 0.16 * (np.floor(across) % 2))[..., None]
    return Backdrop(mix(wall, board, inside(Y - h)))


def _mountains(rng: Rng) -> Backdrop:
    h = _horizon(rng) + 0.1
    pixels = _sky(h, rng)
    for centre in (rng.uniform(0, 0.35), rng.uniform(0.65, 1), rng.uniform(0.3, 0.7)):
        peak = rng.uniform(0.05, 0.2)
        slope = peak + np.abs(X - centre) * rng.uniform(0.8, 1.2) + 0.03 * noise(12, rng)
        rock = np.broadcast_to(shade(colour(0.42, 0.44, 0.53), rng), pixels.shape)
        rock = mix(rock, colour(0.95, 0.97, 1), inside(peak + 0.13 + 0.05 * noise(10, rng) - Y))
        pixels = mix(pixels, rock, inside(Y - slope))
    return Backdrop(mix(pixels, shade(colour(0.34, 0.50, 0.30), rng), inside(Y - h)))


def _sunset(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    sky = gradient(shade(colour(0.48, 0.20, 0.52), rng), shade(colour(1.0, 0.60, 0.20), rng), 0, h)
    x, radius = rng.uniform(0.15, 0.85), rng.uniform(0.11, 0.16)
    sky = mix(sky, colour(1, 0.93, 0.52), inside(radius - np.hypot(X - x, Y - h + 0.03)))
    path = np.clip(1 - np.abs(X - x) * 5, 0, 1) * noise(10, rng)
    ground = shade(colour(0.26, 0.12, 0.22), rng, 0.03) + 0.35 * path[..., None] * colour(1, 0.5, 0.2)
    return Backdrop(mix(sky, ground, inside(Y - h)))


def _brick_wall(rng: Rng) -> Backdrop:
    rows = Y * 9 + rng.uniform(0, 1)
    columns = X * 4.5 + 0.5 * (np.floor(rows) % 2) + rng.uniform(0, 1)
    mortar = np.maximum(np.clip((0.22 - rows % 1) * 6, 0, 1), np.clip((0.13 - columns % 1) * 11, 0, 1))
    brick = shade(colour(0.70, 0.28, 0.20), rng) * (0.8 + 0.3 * noise(9, rng))[..., None]
    wall = mix(brick, colour(0.80, 0.76, 0.70), mortar)
    return Backdrop(mix(wall, shade(colour(0.55, 0.52, 0.50), rng), inside(Y - rng.uniform(0.76, 0.86))))


def _road(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    t = np.clip((Y - h) / (1 - h), 0, 1)
    off = np.abs(X - 0.5)
    pixels = mix(_sky(h, rng), shade(colour(0.42, 0.66, 0.30), rng), inside(Y - h))
    tarmac = inside(0.12 + 0.40 * t - off) * inside(Y - h)
    pixels = mix(pixels, shade(colour(0.30, 0.30, 0.33), rng, 0.03), tarmac)
    kerb = inside(0.014 + 0.02 * t - np.abs(off - 0.10 - 0.34 * t)) * inside(Y - h)
    dashes = inside(0.012 + 0.03 * t - off) * inside(Y - h) * (np.sin(t * 26) > 0)
    return Backdrop(mix(pixels, colour(0.97, 0.95, 0.86), np.maximum(kerb, dashes)))


def _flowers(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    grass = shade(colour(0.26, 0.57, 0.20), rng) + 0.1 * (noise(12, rng) - 0.5)[..., None]
    pixels = mix(_sky(h, rng), grass, inside(Y - h))
    petals = [colour(1, 0.3, 0.4), colour(1, 0.85, 0.2), colour(0.85, 0.4, 0.9), colour(1, 1, 1), colour(1, 0.55, 0.7)]
    for _ in range(46):
        y = rng.uniform(h + 0.02, 1)
        radius = 0.014 + 0.022 * (y - h)
        pixels = mix(pixels, petals[rng.integers(5)], inside(radius - np.hypot(X - rng.random(), Y - y)))
    return Backdrop(pixels)


def _rain(rng: Rng) -> Backdrop:
    h = _horizon(rng)
    sky = gradient(shade(colour(0.34, 0.39, 0.48), rng), shade(colour(0.52, 0.57, 0.64), rng), 0, h)
    puddle = shade(colour(0.32, 0.36, 0.43), rng, 0.03) + 0.12 * (noise(8, rng) - 0.5)[..., None]
    pixels = mix(sky, puddle, inside(Y - h))
    for _ in range(26):
        x, y = rng.uniform(0, 1.1), rng.uniform(-0.1, 0.95)
        drop = inside(0.010 - np.abs(X - x + 0.3 * (Y - y))) * ((y < Y) & (y + 0.13 > Y))
        pixels = mix(pixels, colour(0.78, 0.87, 1), 0.75 * drop)
    return Backdrop(pixels)


def _lava(rng: Rng) -> Backdrop:
    h = _horizon(rng) - 0.12
    rock = gradient(shade(colour(0.24, 0.07, 0.09), rng, 0.02), shade(colour(0.15, 0.09, 0.10), rng, 0.02))
    crack = np.clip(1 - np.abs(noise(6, rng) * 0.6 + noise(10, rng) * 0.4 - 0.5) * 11, 0, 1) * np.clip(
        (Y - h) * 6, 0, 1
    )
    glow = np.clip(1 - np.abs(Y - h) * 8, 0, 1)
    return Backdrop(rock + crack[..., None] * colour(1, 0.5, 0.08) + glow[..., None] * colour(0.55, 0.14, 0.04))


def _plain(tone: np.ndarray, rng: Rng) -> Backdrop:
    vignette = 1 - 0.14 * (np.square(X - 0.5) + np.square(Y - 0.5))
    return Backdrop(shade(tone, rng, 0.02) * vignette[..., None] * (1 + 0.03 * (noise(3, rng) - 0.5))[..., None], False)


@dataclass(frozen=True)
class Scene:
    """How a scene is called in captions, and how it is painted."""

    phrases: tuple[str, ...]
    paint: Callable[[Rng], Backdrop]


SCENES: Mapping[str, Scene] = {
    "beach": Scene(("on the beach", "on a sandy beach", "at the beach"), _beach),
    "snow": Scene(("in the snow", "on the snow", "in winter"), _snow),
    "forest": Scene(("in the forest", "in the jungle", "in the woods"), _forest),
    "grass": Scene(("on the grass", "in a green meadow", "on green grass"), _meadow),
    "desert": Scene(("in the desert", "on the sand dunes"), _desert),
    "city": Scene(("in the city", "with a city in the background"), _city),
    "space": Scene(("in space", "in outer space", "under the stars"), _space),
    "water": Scene(("in the water", "in the ocean", "on top of water"), _water),
    "wooden floor": Scene(("on a wooden floor", "on top of a wooden floor"), _wooden_floor),
    "mountains": Scene(("in the mountains", "with a mountain in the background"), _mountains),
    "sunset": Scene(("at sunset", "with a sunset in the background"), _sunset),
    "brick wall": Scene(("in front of a brick wall", "with a brick wall in the background"), _brick_wall),
    "road": Scene(("on the road", "on the street"), _road),
    "flowers": Scene(("in a field of flowers", "among flowers"), _flowers),
    "rain": Scene(("in the rain", "on a rainy day"), _rain),
    "lava": Scene(("on lava", "near a volcano"), _lava),
}
"""The sixteen scenes, by the name the judges use."""

PLAIN_TONES: Mapping[str, tuple[float, float, float]] = {
    "white": (0.95, 0.95, 0.95),
    "gray": (0.56, 0.56, 0.58),
    "black": (0.07, 0.07, 0.08),
    "red": (0.85, 0.15, 0.15),
    "yellow": (0.97, 0.85, 0.22),
    "green": (0.25, 0.70, 0.30),
    "blue": (0.20, 0.40, 0.90),
    "pink": (0.97, 0.60, 0.75),
}
PLAIN: Mapping[str, Scene] = {
    f"{name} background": Scene((f"on a {name} background",), partial(_plain, colour(*tone)))
    for name, tone in PLAIN_TONES.items()
}
"""Eight plain backgrounds, for pictures of a thing and nothing else."""

ALL_SCENES: Mapping[str, Scene] = {**SCENES, **PLAIN}
