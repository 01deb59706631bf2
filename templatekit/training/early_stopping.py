"""What held-out losses say of a run: which step was best, and whether to go on. Told from the metrics alone."""

from __future__ import annotations

from collections.abc import Iterable

from templatekit.training.metrics import Line


def best_step(lines: Iterable[Line]) -> int | None:
    """The trained step with the lowest held-out loss, the first of equals; None before the first such evaluation."""
    found = [(line["eval_loss"], int(line["step"])) for line in lines if "eval_loss" in line and line["step"]]
    return min(found)[1] if found else None


def is_stuck(lines: Iterable[Line], *, patience: int | None, min_delta: float) -> bool:
    """Whether the last `patience` evaluations each failed to go below the best before them by more than `min_delta`.

    The model as it came counts as the first. Without `patience` a run is never stuck.
    """
    if patience is None:
        return False
    best = float("inf")
    since = 0
    for line in lines:
        if "eval_loss" not in line:
            continue
        since += 1
        if line["eval_loss"] < best - min_delta:
            best, since = line["eval_loss"], 0
    return since >= patience
