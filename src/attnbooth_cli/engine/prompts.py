"""Prompts to evaluate a concept on. `{}` stands for the concept.

Our own sets have two editions: for real base models, and in the words and things the bundled model knows. They were
written for this project; the paper's own list is not published. DreamBooth's are copied from google/dreambooth
(`prompts_and_classes.txt`, CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Groups = Mapping[str, tuple[str, ...]]
"""Prompts by what they change."""

EVALUATION: Mapping[str, Groups] = {
    "general": {
        "background": (
            "a photo of a {} in front of a brick wall",
            "a photo of a {} with a city skyline in the background",
            "a photo of a {} with snowy mountains in the background",
            "a photo of a {} in front of a red curtain",
            "a photo of a {} with a sunset in the background",
            "a photo of a {} against a plain yellow background",
        ),
        "environment": (
            "a photo of a {} on a sandy beach",
            "a photo of a {} in deep snow",
            "a photo of a {} in a dense forest",
            "a photo of a {} floating in outer space",
            "a photo of a {} in a field of flowers",
            "a photo of a {} on a wooden table",
        ),
        "colour": (
            "a photo of a red {} on green grass",
            "a photo of a blue {} on a sandy beach",
            "a photo of a green {} on a street",
            "a photo of a purple {} in the snow",
            "a photo of a golden {} on a wooden floor",
            "a photo of a black {} in the desert",
        ),
        "style": (
            "a pencil sketch of a {} on a road",
            "an oil painting of a {} in a forest",
            "a watercolor painting of a {} on a beach",
            "pixel art of a {} in a city",
            "a cartoon drawing of a {} in the mountains",
            "a neon sign of a {} on a rainy night",
        ),
    },
    "tiny": {
        "background": (
            "a photo of a {} in front of a brick wall",
            "a photo of a {} with a city in the background",
            "a photo of a {} with a mountain in the background",
            "a photo of a {} on a red background",
            "a photo of a {} with a sunset in the background",
            "a photo of a {} on a yellow background",
        ),
        "environment": (
            "a photo of a {} on a sandy beach",
            "a photo of a {} in the snow",
            "a photo of a {} in the forest",
            "a photo of a {} in outer space",
            "a photo of a {} in a field of flowers",
            "a photo of a {} on a wooden floor",
        ),
        "colour": (
            "a photo of a red {} on green grass",
            "a photo of a blue {} on a sandy beach",
            "a photo of a green {} on the road",
            "a photo of a purple {} in the snow",
            "a photo of a yellow {} on a wooden floor",
            "a photo of a black {} in the desert",
        ),
        "style": (
            "a pencil sketch of a {} on the road",
            "an oil painting of a {} in the forest",
            "a watercolor painting of a {} on the beach",
            "pixel art of a {} in the city",
            "a cartoon of a {} in the mountains",
            "a neon sign of a {} in the rain",
        ),
    },
}
"""The 24 evaluation prompts: six each that change background, environment, concept colour and artistic style."""

COMPLEX: Mapping[str, Groups] = {
    "general": {
        "complex": (
            "a photo of a {} wearing a knitted scarf on a park bench under falling autumn leaves",
            "a {} beside a tall vase of sunflowers on a wooden table next to a rainy window, oil painting",
            "a watercolor painting of a red {} crossing a stone bridge over a mountain stream at dawn",
            "a photo of a small {} next to a huge teapot on a picnic blanket in a green meadow",
            "a pencil sketch of a {} at a desk piled with old books, lit by a single candle",
            "a photo of a {} on a raft in a calm lake with snowy mountains and a pink sunset behind it",
            "pixel art of a blue {} jumping over a car in a neon city at night",
            "a {} in a spacesuit floating above the earth, with the moon and many stars in the background, digital art",
            "a photo of a {} and a dog looking out of the window of a moving train",
            "a vintage sepia photo of a {} in front of a crowded market in a narrow street",
            "a cartoon of a purple {} riding a bicycle through a field of flowers on a windy day",
            "a photo of a {} made of glass on black velvet, with light from one side and a soft shadow",
        ),
    },
    "tiny": {
        "complex": (
            "a photo of a {} next to a tree in a field of flowers",
            "an oil painting of a {} beside a red mushroom in the forest",
            "a watercolor painting of a small red {} on a sandy beach",
            "a photo of a small {} in front of a brick wall on a rainy day",
            "a pencil sketch of a {} and a house with a mountain in the background",
            "a photo of a huge blue {} and a tree in the snow",
            "pixel art of a green {} next to a car with a city in the background",
            "a {} beside a rocket in outer space in the style of an oil painting",
            "a close-up photo of a {} and a dog on a wooden floor",
            "an old sepia photo of a {} next to a house on the street",
            "a purple {} beside a cactus in the desert in the style of a cartoon",
            "a neon sign of a tiny yellow {} and a cat in the rain",
        ),
    },
}
"""Twelve long prompts that ask for several things at once."""

_DREAMBOOTH_SHARED = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_DREAMBOOTH_COLOUR = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")

DREAMBOOTH: Mapping[str, Groups] = MappingProxyType(
    {
        "object": {
            "object": (
                *_DREAMBOOTH_SHARED,
                "a {} with a wheat field in the background",
                "a {} with a tree and autumn leaves in the background",
                "a {} with the Eiffel Tower in the background",
                "a {} floating on top of water",
                "a {} floating in an ocean of milk",
                "a {} on top of green grass with sunflowers around it",
                "a {} on top of a mirror",
                "a {} on top of the sidewalk in a crowded street",
                "a {} on top of a dirt road",
                "a {} on top of a white rug",
                *_DREAMBOOTH_COLOUR,
            ),
        },
        "live": {
            "live": (
                *_DREAMBOOTH_SHARED,
                "a {} wearing a red hat",
                "a {} wearing a santa hat",
                "a {} wearing a rainbow scarf",
                "a {} wearing a black top hat and a monocle",
                "a {} in a chef outfit",
                "a {} in a firefighter outfit",
                "a {} in a police outfit",
                "a {} wearing pink glasses",
                "a {} wearing a yellow shirt",
                "a {} in a purple wizard outfit",
                *_DREAMBOOTH_COLOUR,
            ),
        },
    }
)
"""DreamBooth's 25 prompts for objects and 25 for live subjects."""

DRIFT: Mapping[str, tuple[str, ...]] = {
    "general": (
        "a photo of a {category}",
        "a photo of a {category} on a street",
        "a drawing of a {category}",
        "a photo of a house by a lake",
        "a photo of a person riding a bicycle",
        "a bowl of fruit on a table",
        "an oil painting of a ship in a storm",
        "a photo of a mountain at sunset",
    ),
    "tiny": (
        "a photo of a {category}",
        "a photo of a {category} on the road",
        "a drawing of a {category} in the city",
        "a photo of a house on green grass",
        "a photo of an owl in the forest",
        "a photo of a can on a wooden floor",
        "an oil painting of an elephant in the rain",
        "a watercolor of a tree at sunset",
    ),
}
"""Prompts without the concept: what the model makes of its category, and of other things. Written for this project."""
