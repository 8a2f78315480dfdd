"""The first import of torch and what stands on it, as quick as it can be."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Lets the block import torch, diffusers and transformers without garbage collections in between.

    What modules define stays, so looking through it finds nothing, and takes a tenth of the time until the first step.
    Afterwards it is left out of every later collection (`gc.freeze`). Does nothing where torch is there already, which
    is when a program of somebody else's has imported it.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
