"""Peak memory of a piece of work."""

from __future__ import annotations

from pathlib import Path

import torch


def reset_peak() -> None:
    """Start a new peak, of the GPU where there is one, else of this process (Linux only)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float | None:
    """Peak since `reset_peak` in MiB: GPU memory allocated, else resident memory of this process; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None
