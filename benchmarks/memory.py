"""What a run of a benchmark took at its peak."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PEAK = Path("/proc/self/clear_refs")
"""Where Linux takes a 5 for: begin the process's peak memory anew."""


def begin_peak(device: torch.device) -> Callable[[], float]:
    """Begins to watch; gives what tells the GiB that were taken since, at the peak: by the process, or on the GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        return lambda: (torch.cuda.max_memory_allocated(device) - allocated) / 2**30
    if not PEAK.exists():
        return lambda: math.nan
    PEAK.write_text("5")

    def resident(key: str) -> float:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[key].split()[0]) / 2**20

    before = resident("VmRSS")
    return lambda: resident("VmHWM") - before


def state_gib(model: Any) -> float:
    """What gradients and AdamW's moments take; the weights were there before."""
    sizes: list[int] = [w.numel() * w.element_size() for w in model.parameters() if w.requires_grad]
    return 3 * sum(sizes) / 2**30
