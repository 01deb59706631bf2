"""The learning rate of a step, from nothing but its number."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from templatekit.errors import ConfigError

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, total: int, *, peak: float, schedule: Schedule, warmup: float) -> float:
    """The rate of step `step` of `total`, counted from 0.

    It rises linearly to `peak` over the warm-up and then stays, or falls towards 0. No step has the rate 0: the first
    is the first of the rise, and 0 would be reached one step after the last.
    """
    rise = warmup_steps(warmup, total)
    if step < rise:
        return peak * (step + 1) / rise
    done = (step - rise) / max(1, total - rise)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    return peak


def warmup_steps(warmup: float, total: int) -> int:
    """A warm-up in steps: below 1 it is a fraction of `total`, rounded up; from 1 on a whole number of steps."""
    if warmup < 1:
        return math.ceil(round(warmup * total, 6))
    if warmup != int(warmup):
        raise ConfigError(f"warmup={warmup!r}: a fraction of the steps is below 1, a number of steps is whole")
    return int(warmup)
