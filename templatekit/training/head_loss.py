"""Weighted cross-entropy of a linear head, with its gradients made in the same walk over the logits.

The logits of a few targets are a gigabyte where vocabularies are large. Here a chunk of them is made by one product,
turned in place into the gradient of the loss, and used up by two more: no logit is computed twice or kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax

CHUNK_BYTES = 2**26
"""Logits that are there at once."""
BLOCK = 2**19
"""Logits that pass through softmax together, as numbers: few enough for a processor's cache."""


def linear_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The sum over targets of weight times cross-entropy in nats, of the logits `hidden @ head.T`.

    Shapes (targets, width), (vocabulary, width), (targets,), (targets,); the products are computed in the type of
    `hidden`, all else in fp32 or wider, as is the result. `head` may be a wider type: it is cast.
    """
    head = head.to(hidden.dtype)
    wanted = torch.is_grad_enabled()
    result: Tensor = _LinearLoss.apply(hidden, head, targets, weights, wanted)  # type: ignore[no-untyped-call]
    return result


class _LinearLoss(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, wanted: bool) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        for_hidden, for_head = (wanted and need for need in ctx.needs_input_grad[:2])
        of_hidden = torch.empty_like(hidden) if for_hidden else None
        of_head: Tensor | None = torch.zeros_like(head) if for_head and not len(targets) else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        size = max(1, CHUNK_BYTES // (head.shape[0] * head.element_size()))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), size):
                own = slice(start, min(start + size, len(targets)))
                logits = hidden[own] @ head.t()
                total += _to_gradient(logits, targets[own], weights[own].to(wide), wide)
                if of_hidden is not None:
                    torch.mm(logits, head, out=of_hidden[own])
                if for_head:
                    part = logits.t() @ hidden[own]
                    # Over several chunks it is summed up in fp32, as over several micro-batches.
                    of_head = part if of_head is None else of_head.to(wide).add_(part)
        ctx.gradients = of_hidden, of_head
        ctx.dtypes = hidden.dtype, head.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if known is None else (known * grad).to(dtype)
            for known, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


def _to_gradient(logits: Tensor, targets: Tensor, weights: Tensor, wide: torch.dtype) -> Tensor:
    """The chunk's loss; its logits become the gradient of it, in place."""
    total = torch.zeros((), dtype=wide, device=logits.device)
    size = max(1, BLOCK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(targets))
    for start in range(0, len(targets), size):
        own = slice(start, min(start + size, len(targets)))
        index, weight = targets[own, None], weights[own, None]
        each = log_softmax(logits[own], dim=-1, dtype=wide)
        total -= (each.gather(1, index) * weight).sum()
        each.exp_().mul_(weight).scatter_add_(1, index, -weight)
        logits[own] = each
    return total
