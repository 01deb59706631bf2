"""The peak memory of a benchmark's run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
"""The file to which a process writes 5 to have Linux reset its peak memory."""


def watch_peak_memory(device: torch.device) -> Callable[[], float]:
    """Return a function that returns the peak memory since now in GiB, of the process or of the GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        return lambda: (torch.cuda.max_memory_allocated(device) - allocated) / 2**30
    if not CLEAR_REFS.exists():
        return lambda: math.nan
    CLEAR_REFS.write_text("5")

    def resident(key: str) -> float:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[key].split()[0]) / 2**20

    before = resident("VmRSS")
    return lambda: resident("VmHWM") - before


def gradient_and_optimizer_gib(model: Any) -> float:
    """The size of gradients and AdamW's moments in GiB."""
    sizes: list[int] = [w.numel() * w.element_size() for w in model.parameters() if w.requires_grad]
    return 3 * sum(sizes) / 2**30
