"""Methods as data: what each stage trains, for how long, at which rate, under which regulariser.

A fast mode, an ablation or another paper's method is other values in these tables, never other code. Imports nothing
heavy: the plan is built from here before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

StageName = Literal["embedding", "attention", "unet"]
"""What a stage trains: the embedding rows of [V]; the cross-attention modules; the whole U-Net."""

STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)

AdapterName = Literal["lora", "oft", "mapper", "image-attention"]
"""What is trained in place of a stage's own weights: see `adapters`, `neti` and `vico`."""

OptimizerName = Literal["adamw", "adamw8bit", "paged_adamw8bit"]
"""AdamW with its moments in float32, in 8 bits, or in 8 bits that move to the host's memory when a GPU's is full."""

MemoryName = Literal["auto", "high", "24gb", "16gb", "8gb"]
"""How much memory the device has: the names of `MEMORY`."""


@dataclass(frozen=True)
class Stage:
    """One stage of training (paper section 4.2; figures from the reference's training script).

    Attributes:
        name: What it trains.
        steps: Optimiser steps.
        learning_rate: Constant, no warm-up.
        batch_size: Pictures in one optimiser step, however they are split over micro-batches and processes.
        mean_weight: lambda_mu of the attention regulariser.
        variance_weight: lambda_sigma of the attention regulariser.
        enabled: Off for an ablation that leaves the stage out.
        prior_weight: lambda of the prior-preservation loss (DreamBooth, equation 2); 0 for none.
        adapter: What is trained in place of the stage's own weights: LoRA or OFT in stage `unet`, NeTI's mapper in
            stage `embedding`, ViCo's new layers in stage `attention`.
        adapter_size: LoRA's rank; OFT's number of blocks.
        snr_gamma: gamma of the diffusion loss's min-SNR weights; 0 for none.
        context_weight: lambda_emb of CoRe's context regularisation (see `context`), of stage `embedding`; 0 for none.
        context_attention_weight: lambda_attn of the same.
        embedding_rate: Learning rate of [V]'s embedding where ViCo's layers train it beside them.
    """

    name: StageName
    steps: int
    learning_rate: float
    batch_size: int
    mean_weight: float
    variance_weight: float
    enabled: bool = True
    prior_weight: float = 0.0
    adapter: AdapterName | None = None
    adapter_size: int = 4
    embedding_rate: float = 0.0
    snr_gamma: float = 0.0
    context_weight: float = 0.0
    context_attention_weight: float = 0.0

    @property
    def adapts_unet(self) -> bool:
        """Whether an adapter stands in for the U-Net's weights."""
        return self.name == "unet" and self.adapter is not None

    @property
    def contextual(self) -> bool:
        """Whether any term of CoRe's context regularisation is active."""
        return self.context_weight != 0 or self.context_attention_weight != 0

    @property
    def regularised(self) -> bool:
        """Whether any term of the attention regulariser is active."""
        return self.mean_weight != 0 or self.variance_weight != 0


@dataclass(frozen=True)
class AdamW:
    """The optimiser's constants (the reference script's defaults, used for every stage).

    Attributes:
        max_gradient_norm: Gradients are scaled down to this norm; None for not at all.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    max_gradient_norm: float | None = None


@dataclass(frozen=True)
class Method:
    """A way to personalise: its stages in order, its presets, and the training prompts.

    Attributes:
        presets: Preset name -> stage name -> the values it changes.
        prompts: Training prompts; one is drawn for each sample where there are several. `{}` stands for the concept.
        with_category: Whether `{}` means `[V] C`, in training and afterwards, or [V] alone.
        rare_token: Whether [V] starts as the base model's rare token, and not as the category.
        settings: Settings beside the stages' that belong to it, by key; they go before the base model's.
        source: Where the values were read.
    """

    name: str
    stages: tuple[Stage, ...]
    presets: dict[str, dict[StageName, dict[str, float | int]]]
    prompts: tuple[str, ...]
    optimizer: AdamW
    source: str
    with_category: bool = True
    rare_token: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The method that this one is, is an ablation of, or adds something to."""
        return self.name.partition("-with")[0]


ATTNDREAMBOOTH = Method(
    name="attndreambooth",
    stages=(
        Stage("embedding", steps=60, learning_rate=1e-3, batch_size=8, mean_weight=0.1, variance_weight=0.0),
        Stage("attention", steps=100, learning_rate=2e-5, batch_size=8, mean_weight=2.0, variance_weight=5.0),
        Stage("unet", steps=500, learning_rate=2e-6, batch_size=8, mean_weight=2.0, variance_weight=5.0),
    ),
    # Fast mode changes stage 3 alone; half the batch also halves the regulariser's pull, as in the reference.
    presets={"fast": {"unet": {"steps": 200, "learning_rate": 1e-5, "batch_size": 4}}},
    prompts=("a photo of a {}",),
    optimizer=AdamW(),
    source="AttnDreamBooth (Pang et al., NeurIPS 2024), the authors' released scripts",
)


def _stages(**used: Mapping[str, Any]) -> tuple[Stage, ...]:
    """AttnDreamBooth's three stages without regulariser, those that are not named switched off."""
    return tuple(
        replace(stage, mean_weight=0.0, variance_weight=0.0, enabled=stage.name in used, **used.get(stage.name, {}))
        for stage in ATTNDREAMBOOTH.stages
    )


# The distinct ones of imagenet_templates_small in rinongal/textual_inversion, ldm/data/personalized.py (MIT), with the
# number of times they stand there: the list names three media, and some templates once for each.
_OF_MEDIUM = (
    "{medium} of a {{}}", "{medium} of a clean {{}}", "{medium} of a dirty {{}}", "{medium} of my {{}}",
    "{medium} of the cool {{}}", "{medium} of the {{}}", "{medium} of one {{}}", "{medium} of the clean {{}}",
    "{medium} of a nice {{}}", "{medium} of the nice {{}}", "{medium} of the small {{}}", "{medium} of the weird {{}}",
    "{medium} of the large {{}}", "{medium} of a cool {{}}", "{medium} of a small {{}}",
)  # fmt: skip
_OF_ALL = (
    "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}", "a dark photo of the {}",
    "a close-up photo of a {}", "a bright photo of the {}", "a cropped photo of a {}", "a good photo of the {}",
    "a close-up photo of the {}", "a rendition of the {}", "a rendition of a {}", "a good photo of a {}",
)  # fmt: skip
TEMPLATES = tuple(
    template
    for medium in ("a photo", "an illustration", "a depiction")
    for template in (*(text.format(medium=medium) for text in _OF_MEDIUM), *_OF_ALL)
)
"""Textual Inversion's training prompts for objects."""

TEXTUAL_INVERSION = Method(
    name="textual-inversion",
    stages=_stages(embedding={"steps": 6100, "learning_rate": 5e-3, "batch_size": 2}),
    presets={},
    prompts=TEMPLATES,
    optimizer=AdamW(),
    source="Textual Inversion (Gal et al., ICLR 2023); rinongal/textual_inversion, "
    "configs/stable-diffusion/v1-finetune.yaml: base_learning_rate 5.0e-03, batch_size 2, max_steps 6100",
    with_category=False,
    settings={"train.augmentation": "stretched"},
)

DREAMBOOTH = Method(
    name="dreambooth",
    stages=_stages(unet={"steps": 800, "learning_rate": 5e-6, "batch_size": 1, "prior_weight": 1.0}),
    presets={},
    prompts=ATTNDREAMBOOTH.prompts,
    optimizer=AdamW(max_gradient_norm=1.0),
    source="DreamBooth (Ruiz et al., CVPR 2023); huggingface/diffusers, examples/dreambooth/README.md, 'Training with "
    "prior-preservation loss', and train_dreambooth.py: max_grad_norm 1.0",
    rare_token=True,
    settings={"train.augmentation": "cropped", "train.prior_pictures": 200},
)

TI_DB = Method(
    name="ti-db",
    stages=_stages(embedding={"steps": 500}, unet={}),
    presets={},
    prompts=ATTNDREAMBOOTH.prompts,
    optimizer=AdamW(),
    source="Textual Inversion, then DreamBooth: AttnDreamBooth without stage 2 and without the regulariser, its stage "
    "1 carried on to 500 steps (our choice; the paper says only that it is optimised for longer)",
)

LORA = Method(
    name="lora",
    stages=_stages(unet={"steps": 500, "learning_rate": 1e-4, "batch_size": 1, "adapter": "lora"}),
    presets={},
    prompts=ATTNDREAMBOOTH.prompts,
    optimizer=AdamW(max_gradient_norm=1.0),
    source="LoRA (Hu et al., ICLR 2022) for DreamBooth; huggingface/diffusers, examples/dreambooth/README.md, "
    "'Training with Low-Rank Adaptation', and train_dreambooth_lora.py: rank 4, q, k, v and output of every attention",
    rare_token=True,
    settings={"train.augmentation": "cropped"},
)

OFT = Method(
    name="oft",
    stages=_stages(unet={"steps": 2005, "learning_rate": 6e-5, "batch_size": 1, "prior_weight": 1.0, "adapter": "oft"}),
    presets={},
    prompts=ATTNDREAMBOOTH.prompts,
    optimizer=AdamW(max_gradient_norm=1.0),
    source="OFT (Qiu et al., NeurIPS 2023); Zeju1997/oft, oft-db/train_dreambooth_oft.sh: r 4, learning rate "
    "6e-5, 2005 steps, prior weight 1, 200 class pictures; without its bound on the rotations (--coft)",
    rare_token=True,
    settings={"train.augmentation": "cropped", "train.prior_pictures": 200},
)


NETI = Method(
    name="neti",
    stages=_stages(embedding={"steps": 1000, "learning_rate": 8e-3, "batch_size": 8, "adapter": "mapper"}),
    presets={},
    prompts=TEMPLATES[:27],
    optimizer=AdamW(),
    source="NeTI (Alaluf et al., SIGGRAPH Asia 2023); NeuralTextualInversion/NeTI, training/config.py: learning rate "
    "1e-3 times batch 2 times accumulation 4 (scale_lr), 1000 steps",
    with_category=False,
    settings={"train.augmentation": "stretched"},
)

VICO = Method(
    name="vico",
    stages=_stages(
        attention={
            "steps": 400,
            "learning_rate": 1e-5,
            "batch_size": 1,
            "adapter": "image-attention",
            "embedding_rate": 5e-3,
        }
    ),
    presets={},
    prompts=TEMPLATES,
    optimizer=AdamW(),
    source="ViCo (Hao et al. 2023); haoosz/ViCo, ldm/models/diffusion/ddpm.py, configure_optimizers: 1e-5 of "
    "the new layers; configs/v1-finetune.yaml: 5.0e-03 of the embedding, batch_size 1; 400 steps, "
    "the last of the checkpoints its README uses",
    with_category=False,
    settings={"train.augmentation": "squeezed"},
)


def _without(part: str) -> Method:
    """An ablation of AttnDreamBooth: a stage left out, or the regulariser."""
    off = {"mean_weight": 0.0, "variance_weight": 0.0}
    stages = tuple(
        replace(stage, **(off if part == "regulariser" else {"enabled": stage.enabled and stage.name != part}))
        for stage in ATTNDREAMBOOTH.stages
    )
    return replace(
        ATTNDREAMBOOTH,
        name=f"{ATTNDREAMBOOTH.name}-without-{part}",
        stages=stages,
        source=f"{ATTNDREAMBOOTH.source}; the paper's ablation",
    )


CORE = replace(
    ATTNDREAMBOOTH,
    name=f"{ATTNDREAMBOOTH.name}-with-core",
    stages=(
        replace(ATTNDREAMBOOTH.stages[0], context_weight=1.5e-4, context_attention_weight=0.05),
        *ATTNDREAMBOOTH.stages[1:],
    ),
    source=f"{ATTNDREAMBOOTH.source}; with the context regularisation of CoRe (Wu et al. 2024) in stage 1, its weights "
    "those of pangy9/CoRe, bash_script/train.sh, and of its appendix G",
)

PRIOR = replace(
    ATTNDREAMBOOTH,
    name=f"{ATTNDREAMBOOTH.name}-with-prior",
    stages=(*ATTNDREAMBOOTH.stages[:2], replace(ATTNDREAMBOOTH.stages[2], prior_weight=1.0)),
    source=f"{ATTNDREAMBOOTH.source}; with DreamBooth's prior preservation in stage 3 (our addition): the regulariser "
    "ties the maps of [V] to those of C, and this ties C to what it was",
    settings={"train.prior_pictures": 200},
)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ATTNDREAMBOOTH,
        TEXTUAL_INVERSION,
        DREAMBOOTH,
        TI_DB,
        LORA,
        OFT,
        NETI,
        VICO,
        *(_without(part) for part in (*STAGE_NAMES, "regulariser")),
        CORE,
        PRIOR,
    )
}


@dataclass(frozen=True)
class MemoryPreset:
    """What is given up for memory: time; and, where it names an optimiser or LoRA, the same result.

    Attributes:
        settings: Settings by key, without `train.`.
        unet: Of stage `unet`, where a method trains the whole U-Net.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    unet: Mapping[str, Any] = field(default_factory=dict)


# LoRA's rate is that of the method `lora`; four times its rank, as it stands in for the whole U-Net after two other
# stages, is our choice, and so is what each preset combines. With checkpointing a whole batch, whose gradients are used
# up as they come, needs less than micro-batches, which add them up. Nothing here has been measured on a GPU.
MEMORY: dict[MemoryName, MemoryPreset] = {
    "auto": MemoryPreset(),
    "high": MemoryPreset(),
    "24gb": MemoryPreset({"gradient_checkpointing": True}),
    "16gb": MemoryPreset({"gradient_checkpointing": True, "micro_batch_size": 1, "optimizer": "adamw8bit"}),
    "8gb": MemoryPreset(
        {"gradient_checkpointing": True, "micro_batch_size": 1, "optimizer": "paged_adamw8bit"},
        {"adapter": "lora", "adapter_size": 16, "learning_rate": 1e-4},
    ),
}
