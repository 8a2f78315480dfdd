"""A process's own memory (Linux: proc(5))."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """Begins the process's peak anew (clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory the process has held since `forget_peak`, libraries included (VmHWM)."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """The memory the process holds now (VmRSS)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
