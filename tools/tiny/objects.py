"""What the world holds: its nouns, the emoji that stand for each, colours, patterns and sizes.

No import beyond the standard library: the grammar and its tests need no drawing.
"""

from __future__ import annotations

NOUNS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "black-cat", "cat-face"),
    "dog": ("dog", "poodle", "dog-face"),
    "rabbit": ("rabbit", "rabbit-face"),
    "pig": ("pig", "pig-face"),
    "penguin": ("penguin",),
    "owl": ("owl",),
    "duck": ("duck",),
    "fish": ("tropical-fish", "fish", "blowfish"),
    "frog": ("frog",),
    "elephant": ("elephant",),
    "turtle": ("turtle",),
    "teddy bear": ("teddy-bear",),
    "robot": ("robot",),
    "teapot": ("teapot",),
    "can": ("canned-food",),
    "car": ("automobile", "sport-utility-vehicle", "oncoming-automobile"),
    "rocket": ("rocket",),
    "house": ("house", "house-with-garden"),
    "mushroom": ("mushroom", "brown-mushroom"),
    "cactus": ("cactus",),
    "guitar": ("guitar",),
    "backpack": ("backpack",),
    "clock": ("alarm-clock",),
    "tree": ("deciduous-tree", "evergreen-tree"),
}
"""Everyday category nouns and the Unicode names (in the sets' spelling) of their emoji."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.13),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.98, 0.85, 0.18),
    "green": (0.16, 0.65, 0.22),
    "blue": (0.16, 0.36, 0.90),
    "purple": (0.52, 0.20, 0.78),
    "pink": (0.98, 0.52, 0.72),
    "brown": (0.48, 0.28, 0.14),
    "black": (0.13, 0.13, 0.15),
    "white": (0.95, 0.95, 0.95),
}
"""Colour words and the sRGB they stand for, in [0, 1]."""

RESERVED_TONES: dict[str, tuple[float, float, float]] = {
    "teal": (0.05, 0.62, 0.60),
    "maroon": (0.55, 0.05, 0.22),
    "navy": (0.10, 0.14, 0.48),
    "lime": (0.70, 0.90, 0.20),
    "coral": (0.98, 0.46, 0.40),
    "lavender": (0.74, 0.66, 0.96),
    "mint": (0.60, 0.94, 0.76),
    "mustard": (0.78, 0.62, 0.10),
    "sky": (0.36, 0.80, 0.96),
    "magenta": (0.86, 0.10, 0.60),
    "olive": (0.45, 0.48, 0.14),
    "peach": (0.99, 0.80, 0.64),
}
"""Tones that only held-out concepts are painted in; nothing in training comes within `RESERVED_RADIUS` of one."""

RESERVED_RADIUS = 0.12
"""Euclidean distance in sRGB [0, 1]."""

PATTERNS: dict[str, str] = {"stripes": "striped", "dots": "dotted", "checks": "checkered", "patches": "spotted"}
"""Patterns of training instances and the word a caption uses for each."""

RESERVED_PATTERNS = ("zigzag", "rings", "diamonds", "waves", "halves")
"""Patterns that only held-out concepts wear."""

SIZES: dict[str, tuple[str, ...]] = {"small": ("small", "tiny", "little"), "large": ("big", "large", "huge")}
"""Size words; a picture of ordinary size has none."""
