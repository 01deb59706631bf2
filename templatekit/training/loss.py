"""The loss of each target of a batch: logits only where there is a target, in fp32, a chunk at a time.

Nothing is averaged here. `step.train_step` divides the weighted sum by the weight of all targets of the optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from templatekit.training.collator import Batch
from templatekit.training.kernels.autograd import at_least_fp32, autocast_dtype
from templatekit.training.kernels.cross_entropy import linear_cross_entropy
from templatekit.training.kernels.fusion import Fusion

LOGITS_PER_CHUNK = 2**24
"""How many logits a head that is more than one product computes at once: 64 MiB in fp32. More logits are computed in
chunks, and again in the backward pass, so that memory does not grow with targets times vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The language-model head: it turns hidden states into logits, for any count of hidden states."""

    projection: nn.Module
    softcap: float | None
    """Gemma passes logits through `softcap * tanh(logits / softcap)`."""

    @property
    def is_plain(self) -> bool:
        """Whether the head is one matrix product and nothing else: no bias, softcap, sharded weight or hook."""
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
        logits: Tensor = at_least_fp32(self.projection(hidden))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def detect_head(model: PreTrainedModel) -> Head | None:
    """The head of a model, or None where the model does more than `Head` between hidden states and logits.

    A trial decides: on two tokens the head must give the logits that the model gives.
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
        expected = at_least_fp32(model(**inputs).logits[0])
        states = getattr(cast("Any", model).get_decoder()(**inputs), "last_hidden_state", None)
        found = None if states is None else head(states[0])
    model.train(training)
    if found is None or found.shape != expected.shape:
        return None
    return head if torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True) else None


class ModelWithLoss(nn.Module):
    """A model with its head and its loss as one module, which DDP or FSDP can wrap."""

    def __init__(self, model: PreTrainedModel, head: Head | None, fusion: Fusion | None = None) -> None:
        """Without a `head` the model computes the logits of all tokens itself."""
        super().__init__()
        self.model = model
        self.head = head
        self.fusion = Fusion() if fusion is None else fusion

    def forward(self, batch: Batch) -> Tensor:
        """The cross-entropy of each target of the batch in nats, shape (targets,), fp32 or wider."""
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if self.head is None:
            logits = self.model(**inputs).logits.flatten(0, 1).index_select(0, batch.target_positions)
            return cross_entropy(at_least_fp32(logits), batch.targets, reduction="none")
        states = cast("Any", self.model).get_decoder()(**inputs).last_hidden_state
        hidden = states.flatten(0, 1).index_select(0, batch.target_positions)
        if self.head.is_plain:
            hidden = hidden.to(autocast_dtype(hidden) or hidden.dtype)
            return linear_cross_entropy(
                hidden, self.fusion.weight(cast("nn.Linear", self.head.projection)), batch.targets
            )
        size = max(1, LOGITS_PER_CHUNK // self.model.config.get_text_config().vocab_size)
        if len(batch.targets) <= size:
            return _chunk_losses(self.head, hidden, batch.targets)
        chunks = zip(torch.split(hidden, size), torch.split(batch.targets, size), strict=True)
        losses = [checkpoint(_chunk_losses, self.head, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(cast("list[Tensor]", losses))


def _chunk_losses(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(hidden), targets, reduction="none")
