"""Imports what a command comes to import, for processes forked from this one. Computes nothing: threads do not fork.

Some of it diffusers and transformers import only when a model is loaded.
"""

import gc
import importlib

for name in (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "torch._dynamo",
    "attnbooth_cli.cli.app",
    "attnbooth_cli.engine.evaluation",
    "attnbooth_cli.engine.generation",
    "attnbooth_cli.engine.training",
    "tests.conftest",
):
    importlib.import_module(name)
gc.collect()
gc.freeze()
