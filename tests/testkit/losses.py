"""A batch's loss as one number."""

from __future__ import annotations

from torch import Tensor, nn

from templatekit.training.collator import Batch


def weighted_loss(losses: nn.Module, batch: Batch) -> Tensor:
    """Sum over the batch's targets of weight times cross-entropy in nats; without targets 0, with a graph."""
    found: Tensor = losses(batch)
    return (found * batch.weights).sum()
