"""One optimizer step, and one evaluation.

`train_step` runs every micro-batch of the step forwards and backwards, checks and clips the gradient, and lets the
optimizer change the weights. The loss is normalised here: the sum over all target tokens of the step, over its
micro-batches and processes, is divided by the sum of their weights. So it makes no difference how a step is cut into
micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from templatekit.errors import RunError
from templatekit.training.collator import Batch
from templatekit.training.distributed import TrainingGroup, full_tensor, gradient_sync
from templatekit.training.objective import Objective


def train_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    items: Sequence[Any],
    indices: Sequence[int],
    *,
    clip_norm: float | None,
) -> dict[str, float]:
    """Make one optimizer step on `items[i]` for each i of `indices`, over as many micro-batches as they need.

    Returns the metrics over all processes, by their names in `metrics.jsonl`:

    - `loss`: the mean over the step's targets, by weight, in nats; with DPO over its pairs.
    - `grad_norm`: the norm of the gradient before clipping.
    - `tokens`: input tokens of the examples; a shared prefix counts for each example that has it.
    - `computed_tokens`: input tokens that the model computed: a shared prefix once, padding included.
    - `padded_tokens`: input tokens that padded batches would have taken, one batch a micro-batch.
    - `target_tokens`: targets of the examples.
    - further means of the objective.

    Raises `RunError`, before any weight changes, where the loss or the gradient is not finite.
    """
    forward_pass, group = objective.forward_pass, objective.forward_pass.group
    batches = list(objective.micro_batches(items, indices))
    total_weight = group.sum([sum(batch.total_weight for _, batch in batches)])[0] or 1.0
    sums = _MetricSums()
    failure: RunError | None = None
    for count, (members, batch) in enumerate(batches, 1):
        with (
            gradient_sync(forward_pass.losses, enabled=count == len(batches)),
            objective.loss_and_metrics(batch) as (loss, more),
        ):
            failure = failure or _check_finite(loss, "the loss", items, members)
            if failure is not None and group.size == 1:
                break
            sums.add(batch, loss, more)
            # DDP and FSDP average gradients over the processes, so the loss is multiplied to get the sum of the
            # gradients.
            torch.autograd.backward([loss * group.size / total_weight])
    group.raise_if_any_failed(failure)
    weights = [weight for param_group in optimizer.param_groups for weight in param_group["params"]]
    total_norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    norm = full_tensor(total_norm)
    failure = _check_finite(norm, "the gradient", items, indices)
    if failure is not None:
        raise failure
    if clip_norm is not None and norm > clip_norm:  # else PyTorch would multiply by 1, in a pass over all gradients
        torch.nn.utils.clip_grads_with_norm_(weights, clip_norm, total_norm)
    forward_pass.fusion.invalidate_trained_copies()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    mean_loss, counts, means = sums.means(group, total_weight)
    return {"loss": mean_loss, "grad_norm": float(norm), **counts, **means}


def evaluate(objective: Objective, items: Sequence[Any]) -> dict[str, float]:
    """Return the mean `loss` over all targets or pairs of the items, by weight, and the objective's further means.

    Leaves the model in evaluation mode. Raises `RunError` where the loss is not finite.
    """
    forward_pass, group = objective.forward_pass, objective.forward_pass.group
    forward_pass.model.train(False)
    sums = _MetricSums()
    failure: RunError | None = None
    batch_size = forward_pass.micro_batcher.evaluation_batch_size
    with torch.no_grad():
        for start in range(0, len(items), batch_size):
            indices = range(start, min(start + batch_size, len(items)))
            for members, batch in objective.micro_batches(items, indices):
                with objective.loss_and_metrics(batch) as (loss, more):
                    failure = failure or _check_finite(loss, "the held-out loss", items, members)
                    sums.add(batch, loss, more)
    group.raise_if_any_failed(failure)
    total_weight = group.sum([sums.total_weight])[0] or 1.0
    mean_loss, _, means = sums.means(group, total_weight)
    return {"loss": mean_loss, **means}


class _MetricSums:
    """Sums of losses, token counts and objective metrics over the micro-batches of this process."""

    def __init__(self) -> None:
        self.loss = self.total_weight = 0.0
        self.counts = dict.fromkeys(("tokens", "computed_tokens", "padded_tokens", "target_tokens"), 0)
        self.more: dict[str, float] = {}

    def add(self, batch: Batch, loss: Tensor, more: Mapping[str, Tensor]) -> None:
        self.loss += float(loss.detach())
        self.total_weight += batch.total_weight
        for name in self.counts:
            self.counts[name] += getattr(batch, name)
        for name, value in more.items():
            self.more[name] = self.more.get(name, 0.0) + float(value)

    def means(self, group: TrainingGroup, total_weight: float) -> tuple[float, dict[str, int], dict[str, float]]:
        """The mean loss, the token counts and the other means, over all processes."""
        loss, *rest = group.sum([self.loss, *self.counts.values(), *self.more.values()])
        counts = {name: int(count) for name, count in zip(self.counts, rest, strict=False)}
        means = {name: value / total_weight for name, value in zip(self.more, rest[len(counts) :], strict=True)}
        return loss / total_weight, counts, means


def _check_finite(value: Tensor, name: str, items: Sequence[Any], indices: Sequence[int]) -> RunError | None:
    """The error to raise where `value` is not finite, with the rows it was computed from; else None."""
    number = float(value.detach())
    if math.isfinite(number):
        return None
    rows = sorted(items[index].row for index in indices)
    shown = ", ".join(map(str, rows[:16])) + (f" and {len(rows) - 16} more" if len(rows) > 16 else "")
    return RunError(
        f"{name} is {number}; rows {shown}; look at these rows, lower --learning-rate, or use --precision fp32"
    )
