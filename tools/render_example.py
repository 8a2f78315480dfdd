"""Draws the example concepts that `attnbooth init --example` copies: a dotted mushroom and a striped cat.

Both are invented here, so that nobody's picture is needed to try the program and no base model can know them. Every
pixel comes from this script; run `python tools/render_example.py` to write the folder again.

A concept is drawn once, in its own coordinates: x to the right, y down, the object inside -1..1. A view says where it
stands in which scene. Everything is drawn four times too large and reduced at the end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

FOLDER = Path(__file__).resolve().parents[1] / "src" / "attnbooth_cli" / "assets" / "example"

SIZE = 128
FINE = 4 * SIZE
CANVAS = 640  # a concept's own canvas
UNIT = 250  # its pixels per unit; the rest is room for tilting

Colour = tuple[int, int, int]
Point = tuple[float, float]

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
TEAL, TEAL_DEEP, YELLOW = (20, 168, 160), (4, 84, 92), (255, 208, 40)
CREAM, CREAM_DEEP, GILLS = (255, 240, 206), (176, 132, 86), (214, 178, 128)
PINK, PINK_DEEP, BLUSH, TURQUOISE = (255, 130, 182), (168, 42, 112), (255, 206, 224), (24, 196, 200)
INK = (34, 26, 40)


@dataclass(frozen=True)
class View:
    """One picture: the scene, the object's height and centre as parts of the picture, its tilt in degrees."""

    scene: str
    height: float
    centre: Point
    tilt: float


# Shapes: masks on a concept's canvas


def pixels(points: Sequence[Point]) -> list[Point]:
    """Canvas pixels of points in a concept's coordinates."""
    return [(CANVAS / 2 + UNIT * x, CANVAS / 2 + UNIT * y) for x, y in points]


def outline(points: Sequence[Point], steps: int = 16) -> list[Point]:
    """The closed Catmull-Rom curve through `points`."""
    curve: list[Point] = []
    for i in range(len(points)):
        a, b, c, d = (points[(i + k - 1) % len(points)] for k in range(4))
        curve.extend(between(a, b, c, d, step / steps) for step in range(steps))
    return curve


def between(a: Point, b: Point, c: Point, d: Point, t: float) -> Point:
    """The Catmull-Rom spline's point at `t` of the way from `b` to `c`."""

    def one(p: float, q: float, r: float, s: float) -> float:
        return q + 0.5 * t * (r - p + t * (2 * p - 5 * q + 4 * r - s + t * (3 * (q - r) + s - p)))

    return one(a[0], b[0], c[0], d[0]), one(a[1], b[1], c[1], d[1])


def mirrored(right: Sequence[Point]) -> list[Point]:
    """A symmetric shape from its right half, which runs from the top to the bottom."""
    return [*right, *((-x, y) for x, y in reversed(right) if x != 0)]


def blob(points: Sequence[Point]) -> Image.Image:
    """The mask of a smooth closed shape."""
    mask = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(mask).polygon(pixels(outline(points)), fill=255)
    return mask


def oval(x: float, y: float, rx: float, ry: float, tilt: float = 0) -> Image.Image:
    """The mask of an ellipse, turned by `tilt` degrees."""
    turn = math.radians(tilt)
    around = [(rx * math.cos(k * math.tau / 12), ry * math.sin(k * math.tau / 12)) for k in range(12)]
    cos, sin = math.cos(turn), math.sin(turn)
    return blob([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in around])


def stroke(points: Sequence[Point], width: float) -> Image.Image:
    """The mask of a line with round ends."""
    mask = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(mask)
    line = pixels(points)
    draw.line(line, fill=255, width=round(UNIT * width), joint="curve")
    for x, y in (line[0], line[-1]):
        radius = UNIT * width / 2
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def union(masks: Sequence[Image.Image]) -> Image.Image:
    """Where any mask is set."""
    result = masks[0]
    for mask in masks[1:]:
        result = ImageChops.lighter(result, mask)
    return result


# Light


def faded(mask: Image.Image, strength: float) -> Image.Image:
    """The mask at a part of its strength."""
    return mask.point([round(value * strength) for value in range(256)])


def soft(mask: Image.Image, radius: float) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(UNIT * radius))


def lamp(mask: Image.Image) -> Image.Image:
    """A round fall-off of light from the upper left of what `mask` covers."""
    left, top, right, bottom = mask.getbbox() or (0, 0, CANVAS, CANVAS)
    width, height = right - left, bottom - top
    glow = ImageOps.invert(Image.radial_gradient("L")).resize((round(width * 1.3), round(height * 1.3)))
    light = Image.new("L", mask.size)
    light.paste(glow, (round(left - 0.3 * width), round(top - 0.35 * height)))
    return light


def paint(
    layer: Image.Image,
    mask: Image.Image,
    colour: Colour,
    shade: Colour,
    pattern: Sequence[tuple[Image.Image, Colour]] = (),
    shine: float = 0.4,
) -> None:
    """Adds a rounded body to the layer: its colour and pattern, a highlight upper left, a darker edge lower right."""
    body = Image.new("RGB", layer.size, colour)
    for shape, tint in pattern:
        body.paste(tint, mask=shape)
    away = ImageChops.offset(soft(ImageOps.invert(mask), 0.13), round(-0.05 * UNIT), round(-0.07 * UNIT))
    body.paste(shade, mask=faded(away, 0.75))
    body.paste(WHITE, mask=faded(lamp(mask), shine))
    layer.paste(body, mask=mask)


def cast(layer: Image.Image, mask: Image.Image, down: float, within: Image.Image, colour: Colour) -> None:
    """Darkens the layer below `mask`, inside the body `within`."""
    shadow = soft(ImageChops.offset(mask, 0, round(down * UNIT)), 0.06)
    layer.paste(colour, mask=faded(ImageChops.multiply(shadow, within), 0.6))


# The concepts


def eye(layer: Image.Image, x: float, y: float, rx: float, ry: float) -> None:
    """A dark eye with a glint."""
    layer.paste(INK, mask=oval(x, y, rx, ry))
    layer.paste(WHITE, mask=oval(x - 0.3 * rx, y - 0.4 * ry, 0.34 * rx, 0.3 * ry))


def mushroom() -> Image.Image:
    """A teal cap with big yellow dots on a cream stem with two small dark eyes."""
    layer = Image.new("RGBA", (CANVAS, CANVAS))
    cap = blob(mirrored([(0, -1), (0.46, -0.91), (0.82, -0.6), (0.98, -0.14), (0.9, 0.06), (0.5, 0.15), (0, 0.18)]))
    stem = blob(mirrored([(0, -0.1), (0.3, 0.0), (0.31, 0.4), (0.42, 0.78), (0.34, 0.97), (0, 1)]))
    gills = oval(0, 0.08, 0.78, 0.17)
    dots = [(-0.02, -0.5, 0.25, 0.23, 0), (-0.6, -0.38, 0.17, 0.21, 24), (0.58, -0.44, 0.17, 0.2, -24)]
    dots += [(-0.3, -0.03, 0.19, 0.13, 4), (0.32, -0.06, 0.2, 0.14, -4), (0.87, -0.07, 0.09, 0.13, -8)]
    dots += [(-0.88, -0.06, 0.09, 0.13, 8), (-0.34, -0.86, 0.17, 0.1, -26), (0.3, -0.88, 0.16, 0.09, 24)]
    paint(layer, gills, GILLS, CREAM_DEEP, shine=0.1)
    paint(layer, stem, CREAM, CREAM_DEEP)
    cast(layer, cap, 0.09, stem, CREAM_DEEP)
    paint(layer, cap, TEAL, TEAL_DEEP, [(union([oval(*dot) for dot in dots]), YELLOW)])
    for x in (-0.14, 0.14):
        eye(layer, x, 0.5, 0.06, 0.085)
    return layer


def cat() -> Image.Image:
    """The head and shoulders of a pink cat with broad turquoise stripes."""
    layer = Image.new("RGBA", (CANVAS, CANVAS))
    body = blob(mirrored([(0, 0.2), (0.44, 0.28), (0.64, 0.54), (0.73, 0.9), (0.52, 1), (0, 1)]))
    head = blob(mirrored([(0, -0.62), (0.46, -0.58), (0.8, -0.26), (0.84, 0.08), (0.58, 0.36), (0, 0.46)]))
    bands = [[(side * 0.9, y - 0.14), (side * 0.34, y)] for y in (0.66, 0.9) for side in (-1, 1)]
    paint(layer, body, PINK, PINK_DEEP, [(union([stroke(band, 0.13) for band in bands]), TURQUOISE)], shine=0.25)
    cast(layer, head, 0.1, body, PINK_DEEP)
    for side in (-1, 1):
        ear(layer, side)
    paint(layer, head, PINK, PINK_DEEP, [(face_stripes(), TURQUOISE)], shine=0.35)
    face(layer)
    return layer


def ear(layer: Image.Image, side: int) -> None:
    outer = [(0.16, -0.5), (0.5, -0.86), (0.7, -1), (0.77, -0.94), (0.84, -0.6), (0.8, -0.14), (0.4, -0.1)]
    inner = [(0.4, -0.52), (0.56, -0.72), (0.67, -0.8), (0.71, -0.6), (0.7, -0.4)]
    shape = blob([(side * x, y) for x, y in outer])
    paint(layer, shape, TURQUOISE, PINK_DEEP, shine=0.3)
    layer.paste(BLUSH, mask=soft(blob([(side * x, y) for x, y in inner]), 0.01))


def face_stripes() -> Image.Image:
    """Three stripes down the forehead and two on each cheek."""
    lines: list[tuple[list[Point], float]] = [([(0, -0.7), (0, -0.3)], 0.17)]
    for side in (-1, 1):
        lines.append(([(side * 0.36, -0.7), (side * 0.29, -0.36)], 0.16))
        lines.append(([(side * 1.0, -0.14), (side * 0.68, -0.08)], 0.15))
        lines.append(([(side * 0.98, 0.18), (side * 0.64, 0.16)], 0.15))
    return union([stroke(line, width) for line, width in lines])


def face(layer: Image.Image) -> None:
    layer.paste(BLUSH, mask=soft(union([oval(-0.17, 0.22, 0.25, 0.17), oval(0.17, 0.22, 0.25, 0.17)]), 0.012))
    for side in (-1, 1):
        eye(layer, side * 0.37, -0.06, 0.125, 0.165)
        smile = [(0.0, 0.2), (side * 0.03, 0.265), (side * 0.1, 0.3), (side * 0.19, 0.28), (side * 0.23, 0.23)]
        layer.paste(INK, mask=stroke(smile, 0.03))
        for y, end in ((0.19, 0.12), (0.27, 0.31)):
            layer.paste(WHITE, mask=stroke([(side * 0.42, y), (side * 0.98, end)], 0.022))
    layer.paste(PINK_DEEP, mask=blob([(-0.1, 0.09), (0, 0.075), (0.1, 0.09), (0.05, 0.17), (0, 0.2), (-0.05, 0.17)]))


# Scenes


def sweep(top: Colour, bottom: Colour, height: int) -> Image.Image:
    """A vertical run of colour, as wide as the picture."""
    return ImageOps.colorize(Image.linear_gradient("L"), top, bottom).resize((FINE, height), Image.Resampling.BILINEAR)


def grounded(sky: tuple[Colour, Colour], ground: tuple[Colour, Colour], horizon: float) -> Image.Image:
    scene = Image.new("RGB", (FINE, FINE))
    line = round(FINE * horizon)
    scene.paste(sweep(*sky, line), (0, 0))
    scene.paste(sweep(*ground, FINE - line), (0, line))
    return scene


def meadow() -> Image.Image:
    scene = grounded(((74, 150, 240), (196, 228, 252)), ((118, 196, 74), (58, 140, 44)), 0.56)
    clouds = Image.new("L", scene.size)
    for puff in ((20, 53, 160, 87), (90, 35, 170, 75), (330, 93, 490, 127), (344, 78, 416, 114)):
        ImageDraw.Draw(clouds).ellipse(puff, fill=225)
    scene.paste(WHITE, mask=clouds.filter(ImageFilter.GaussianBlur(7)))
    draw, chance = ImageDraw.Draw(scene), random.Random("meadow")
    for _ in range(150):
        x, y = chance.uniform(0, FINE), chance.uniform(0.58, 1.02) * FINE
        tall, colour = 6 + 16 * (y / FINE - 0.5), chance.choice([(92, 176, 60), (70, 158, 50), (142, 212, 92)])
        draw.line((x, y, x + chance.uniform(-4, 4), y - tall), fill=colour, width=4)
    return scene


def room() -> Image.Image:
    scene = grounded(((244, 226, 196), (226, 204, 172)), ((150, 92, 48), (188, 122, 66)), 0.58)
    draw, chance = ImageDraw.Draw(scene), random.Random("room")
    line = round(0.58 * FINE)
    for plank in range(-6, 6):
        warm = chance.randint(-14, 14)
        near = [FINE / 2 + 150 * (plank + side) for side in (0, 1)]
        far = [FINE / 2 + 62 * (plank + side) for side in (0, 1)]
        draw.polygon([(far[0], line), (far[1], line), (near[1], FINE), (near[0], FINE)], (170 + warm, 108 + warm, 58))
        draw.line((far[0], line, near[0], FINE), fill=(104, 62, 30), width=4)
    draw.rectangle((0, line - 22, FINE, line), fill=(250, 240, 222))
    draw.line((0, line, FINE, line), fill=(112, 70, 38), width=4)
    return scene


def bricks() -> Image.Image:
    scene = grounded(((206, 190, 176), (196, 180, 168)), ((158, 154, 152), (128, 124, 124)), 0.72)
    draw, chance = ImageDraw.Draw(scene), random.Random("bricks")
    tall, wide, joint, line = 46, 104, 6, round(0.72 * FINE)
    for row in range(line // tall + 1):
        for column in range(-1, FINE // wide + 1):
            x, y, tone = column * wide + (row % 2) * wide // 2, row * tall, chance.randint(-16, 16)
            right, bottom = x + wide - joint, min(y + tall - joint, line)
            draw.rectangle((x, y, right, bottom), fill=(176 + tone, 78 + tone // 2, 58 + tone // 2))
    draw.rectangle((0, line - 6, FINE, line), fill=(120, 112, 110))
    return scene


def beach() -> Image.Image:
    scene = grounded(((104, 186, 244), (222, 242, 252)), ((246, 222, 164), (226, 188, 120)), 0.6)
    scene.paste(sweep((20, 104, 176), (64, 190, 208), round(0.19 * FINE)), (0, round(0.42 * FINE)))
    draw, chance = ImageDraw.Draw(scene), random.Random("beach")
    edge = [(x, 0.61 * FINE + 7 * math.sin(x / 52)) for x in range(0, FINE + 16, 16)]
    draw.line(edge, fill=(246, 252, 252), width=12, joint="curve")
    for _ in range(120):
        x, y, tone = chance.uniform(0, FINE), chance.uniform(0.66, 1) * FINE, chance.choice([-24, 16])
        draw.ellipse((x, y, x + 7, y + 4), fill=(232 + tone, 200 + tone, 136 + tone))
    return scene


def plain() -> Image.Image:
    light = ImageOps.invert(Image.radial_gradient("L")).resize((FINE, FINE), Image.Resampling.BILINEAR)
    return ImageOps.colorize(light, (128, 130, 134), (206, 207, 210))


SCENES: dict[str, Callable[[], Image.Image]] = {
    "meadow": meadow,
    "room": room,
    "bricks": bricks,
    "beach": beach,
    "plain": plain,
}

CONCEPTS: dict[str, tuple[Callable[[], Image.Image], tuple[View, ...]]] = {
    "mushroom": (
        mushroom,
        (
            View("meadow", 0.70, (0.48, 0.54), -4),
            View("room", 0.62, (0.56, 0.58), 5),
            View("bricks", 0.76, (0.50, 0.53), 0),
            View("beach", 0.60, (0.42, 0.57), 7),
            View("plain", 0.66, (0.53, 0.50), -6),
        ),
    ),
    "cat": (
        cat,
        (
            View("meadow", 0.72, (0.53, 0.55), 4),
            View("room", 0.64, (0.44, 0.58), -5),
            View("bricks", 0.78, (0.51, 0.54), 2),
            View("beach", 0.62, (0.57, 0.57), -7),
            View("plain", 0.68, (0.48, 0.51), 0),
        ),
    ),
}


# Pictures


def picture(concept: Image.Image, view: View) -> Image.Image:
    """The concept standing in the view's scene, with a soft shadow on the ground."""
    scene = SCENES[view.scene]()
    height = view.height * FINE
    x, y = view.centre[0] * FINE, view.centre[1] * FINE
    foot = y + 0.485 * height
    shadow = Image.new("L", scene.size)
    around = (x - 0.34 * height, foot - 0.05 * height, x + 0.42 * height, foot + 0.065 * height)
    ImageDraw.Draw(shadow).ellipse(around, fill=130)
    scene.paste(BLACK, mask=shadow.filter(ImageFilter.GaussianBlur(0.03 * height)))
    side = round(CANVAS * height / (2 * UNIT))
    placed = concept.rotate(view.tilt, Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.LANCZOS)
    scene.paste(placed, (round(x - side / 2), round(y - side / 2)), placed)
    return scene.resize((SIZE, SIZE), Image.Resampling.BOX)


def render() -> dict[str, Image.Image]:
    """Every example picture by its path inside the folder."""
    pictures: dict[str, Image.Image] = {}
    for name, (draw, views) in CONCEPTS.items():
        concept = draw()
        for view in views:
            pictures[f"{name}/{view.scene}.png"] = picture(concept, view)
    return pictures


def main() -> None:
    for name, image in render().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True)
        print(f"{name}: {path.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
