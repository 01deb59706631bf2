"""Early stopping: finds the step with the lowest held-out loss and decides whether to stop, from the metrics alone."""

from __future__ import annotations

from collections.abc import Iterable

from templatekit.training.metrics import MetricsLine


def best_step(lines: Iterable[MetricsLine]) -> int | None:
    """The trained step with the lowest held-out loss, the first of equals; None where no trained step was evaluated."""
    found = [(line["eval_loss"], int(line["step"])) for line in lines if "eval_loss" in line and line["step"]]
    return min(found)[1] if found else None


def should_stop_early(lines: Iterable[MetricsLine], *, patience: int | None, min_delta: float) -> bool:
    """Whether none of the last `patience` evaluations is more than `min_delta` below the best evaluation before them.

    The evaluation before training counts as the first. Without `patience` the answer is always no.
    """
    if patience is None:
        return False
    best, since = float("inf"), 0
    for loss in (line["eval_loss"] for line in lines if "eval_loss" in line):
        since += 1
        if loss < best - min_delta:
            best, since = loss, 0
    return since >= patience
