"""The gate against slower and larger: counts of work, never times (`counts` says how to renew what is expected)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.performance import counts

EXPECTED = json.loads(counts.EXPECTED.read_text(encoding="utf-8"))
SAME, OTHER = 1.02, 1.25
"""How much more is let pass with the libraries the counts were made with, and with other versions of them."""
ENCODES = ("vae_encodes", "text_encodes")
"""Ours alone to decide, whatever the libraries."""


def require_no_more(name: str, found: dict[str, int]) -> None:
    """Fails if a count is above the expected one by more than the margin."""
    margin = SAME if counts.versions() == EXPECTED["versions"] else OTHER
    for key, expected in EXPECTED["counts"][name].items():
        most = expected if key in ENCODES else expected * margin
        assert found[key] <= most, (
            f"{name}: {key} {found[key]}, expected {expected}; if it has to be so: "
            "python -m tests.performance.counts --write"
        )


@pytest.mark.parametrize("stage", ["embedding", "attention", "unet"])
def test_a_step_computes_calls_and_keeps_no_more(stage: str, engine_loaded: None) -> None:
    found = counts.of_a_step(stage)
    assert all(found.values())
    require_no_more(f"step {stage}", found)


def test_a_run_encodes_no_more(engine_loaded: None) -> None:
    require_no_more("run", counts.of_a_run())


def test_sampling_encodes_each_text_once(engine_loaded: None) -> None:
    found = counts.of_sampling()
    assert found["text_encodes"] == 3 + 1  # and the empty negative prompt
    assert found["vae_encodes"] == 0
    require_no_more("sampling", found)


def test_help_imports_and_reads_no_more() -> None:
    start = counts.of_starting("--help")
    assert not {"torch", "diffusers", "transformers", "pydantic", "PIL", "numpy", "rich"} & set(start.modules)
    assert not [name for name in start.files if "attnbooth_cli" in name]
    require_no_more("--help", start.counts)


def test_a_dry_run_imports_and_reads_no_more(project: Path) -> None:
    start = counts.of_starting("train", project, "--dry-run")
    assert not {"torch", "diffusers", "transformers", "matplotlib"} & set(start.modules)
    weights = [name for name in start.files if name.endswith(".safetensors")]
    assert all(weights.count(name) <= 2 for name in weights), "a header is read, and the U-Net hashed, once"
    pictures = [name for name in start.files if name.endswith(".png")]
    assert len(pictures) <= 2 * len(set(pictures)), "a picture is looked at and hashed"
    require_no_more("--dry-run", start.counts)


def test_the_gate_refuses_more() -> None:
    found = dict(EXPECTED["counts"]["step unet"])
    require_no_more("step unet", found)
    with pytest.raises(AssertionError, match="flops"):
        require_no_more("step unet", {**found, "flops": found["flops"] * 2})
