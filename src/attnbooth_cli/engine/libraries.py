"""Keeps the libraries quiet: the engine reports through events, and nothing else may write to the terminal.

Import this before diffusers or transformers; both warn at import about optional packages we do not use.
"""

from __future__ import annotations

import logging
import os
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
# Advice to a program's developer, not to the person who runs it.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|huggingface_hub)\b.*")

import diffusers.utils.logging as diffusers_logging  # noqa: E402
import transformers.utils.logging as transformers_logging  # noqa: E402

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
logging.getLogger("accelerate").setLevel(logging.ERROR)
