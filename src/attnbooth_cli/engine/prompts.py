"""Evaluation prompts, in two editions: for real base models, and in the words the bundled model knows.

Two of each of the paper's four groups: background, environment, concept colour, artistic style. Written for this
project.
"""

from __future__ import annotations

EVALUATION_PROMPTS: dict[str, tuple[str, ...]] = {
    "general": (
        "a photo of a {} on a sandy beach",
        "a photo of a {} in front of a brick wall",
        "a photo of a {} in deep snow",
        "a photo of a {} floating in outer space",
        "a photo of a red {} on a wooden table",
        "a photo of a blue {} on green grass",
        "a pencil sketch of a {}",
        "an oil painting of a {} in a forest",
    ),
    "tiny": (
        "a photo of a {} on a sandy beach",
        "a photo of a {} in front of a brick wall",
        "a photo of a {} in the snow",
        "a photo of a {} in outer space",
        "a photo of a red {} on a wooden floor",
        "a photo of a blue {} on green grass",
        "a pencil sketch of a {} on the road",
        "an oil painting of a {} in the forest",
    ),
}
