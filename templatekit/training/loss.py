"""The loss of a batch: logits only where there is a target, in fp32, never all of them at once.

It is a weighted *sum*. The loop divides by the weight of all targets of the optimizer step, so every token of a step
counts the same, however the step is cut into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from templatekit.training.collate import Batch
from templatekit.training.head_loss import linear_loss

LOGITS_AT_ONCE = 2**24
"""Logits of a head that is more than a product, computed together, as numbers: 64 MiB in fp32. Beyond that they are
computed in chunks, and again in the backward pass, so that memory does not grow with targets times vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How a model turns hidden states into logits, where that is known well enough to do it in chunks."""

    projection: nn.Module
    softcap: float | None
    """Gemma's: logits pass through `softcap * tanh(logits / softcap)`."""

    @property
    def is_plain(self) -> bool:
        """Whether it is one matrix product and no more, of a weight that lies here whole, and nobody listens to it."""
        projection = self.projection
        hooks = (projection._forward_hooks, projection._forward_pre_hooks, projection._backward_hooks)
        return (
            type(projection) is nn.Linear
            and type(projection.weight) is nn.Parameter
            and getattr(projection, "bias", None) is None
            and self.softcap is None
            and not any(hooks)
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits in fp32 or wider, shape (tokens, vocabulary), of hidden states of shape (tokens, width)."""
        logits: Tensor = _wide(self.projection(hidden))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def head_of(model: PreTrainedModel) -> Head | None:
    """The head of a model, or None where the model does more between hidden states and logits than is known here.

    Nothing is assumed: on two tokens, the head must give the logits that the model gives.
    """
    projection = cast("Any", model).get_output_embeddings()
    if projection is None:
        return None
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    head = Head(projection=projection, softcap=softcap)
    inputs = {"input_ids": torch.tensor([[0, 1]], device=model.device), "use_cache": False}
    training = model.training
    model.train(False)
    with torch.no_grad():
        expected = _wide(model(**inputs).logits[0])
        states = getattr(cast("Any", model).get_decoder()(**inputs), "last_hidden_state", None)
        found = None if states is None else head(states[0])
    model.train(training)
    if found is None or found.shape != expected.shape:
        return None
    return head if torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True) else None


def weighted_loss(model: PreTrainedModel, head: Head | None, batch: Batch) -> Tensor:
    """Sum over the batch's targets of weight times cross-entropy in nats: a scalar in fp32.

    A batch without targets gives 0, with a graph. Without a `head` the model's own logits are taken, all at once.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    if head is None:
        logits = model(**inputs).logits.flatten(0, 1).index_select(0, batch.target_positions)
        return _sum_of(_wide(logits), batch.targets, batch.weights)
    states = cast("Any", model).get_decoder()(**inputs).last_hidden_state
    hidden = states.flatten(0, 1).index_select(0, batch.target_positions)
    if head.is_plain:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        return linear_loss(hidden, cast("nn.Linear", head.projection).weight, batch.targets, batch.weights)
    size = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    if len(batch.targets) <= size:
        return _sum_of(head(hidden), batch.targets, batch.weights)
    chunks = zip(*(torch.split(values, size) for values in (hidden, batch.targets, batch.weights)), strict=True)
    losses = [checkpoint(_chunk, head, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum()


def _chunk(head: Head, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return _sum_of(head(hidden), targets, weights)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _sum_of(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (cross_entropy(logits, targets, reduction="none") * weights).sum()
