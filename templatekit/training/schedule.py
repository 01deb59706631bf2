"""The learning-rate schedule: warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from templatekit.errors import ConfigError

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, total: int, *, peak: float, schedule: Schedule, warmup: float) -> float:
    """The learning rate of step `step` of `total`; steps count from 0.

    It rises linearly to `peak` during the warm-up, then stays there or falls towards 0. No step has a rate of 0: the
    rise starts above 0, and the fall would reach 0 one step after the last step.
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
    """The warm-up in steps: `warmup` below 1 is a fraction of `total`, rounded up; from 1 on it is a count of steps."""
    if warmup < 1:
        return math.ceil(round(warmup * total, 6))
    if warmup != int(warmup):
        raise ConfigError(f"warmup={warmup!r}: a fraction of the steps is below 1, a number of steps is whole")
    return int(warmup)
