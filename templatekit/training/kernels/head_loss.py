"""Cross-entropy of a linear head, a chunk of logits at a time, each of which becomes its own gradient in place.

The logits of a few targets are a gigabyte where vocabularies are large, and every pass over them costs as much as the
product that made them. Here a chunk goes through softmax in blocks that fit a processor's cache, and what is kept of it
for the backward pass is the gradient of the loss, in the narrow type that the products take.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from templatekit.training.kernels.autograd import apply

CHUNK_BYTES = 3 * 2**26
"""Logits that there are at once. Their gradients are kept for the backward pass, where those of targets beyond them are
computed again."""
BLOCK = 2**19
"""Logits that pass through softmax together on the CPU, as numbers: few enough for its cache."""


def linear_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each target in nats, shape (targets,), of the logits `hidden @ head.T`.

    Shapes (targets, width), (vocabulary, width), (targets,). The products are computed in the type of `hidden`, to
    which `head` is cast; all else in fp32 or wider, as is the result.
    """
    return apply(_LinearLosses, hidden, head.to(hidden.dtype), targets)


class _LinearLosses(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        losses = hidden.new_empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32))
        chunks = _chunks(targets, head)
        logits = hidden.new_empty(len(targets[chunks[0]]), len(head))
        # The first comes last: it is the one whose gradients stay, and it is never shorter than another.
        for own in reversed(chunks):
            losses[own] = _gradient(hidden[own], head, targets[own], logits)
        ctx.save_for_backward(hidden, head, targets, logits)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets, logits = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_head: Tensor | None = None
        for number, own in enumerate(_chunks(targets, head)):
            if number:
                _gradient(hidden[own], head, targets[own], logits)
            gradient = logits[: len(targets[own])]
            factor = grad[own, None]
            with torch.autocast(hidden.device.type, enabled=False):
                if of_hidden is not None:
                    of_hidden[own] = (gradient @ head) * factor
                if ctx.needs_input_grad[1]:
                    part = gradient.t() @ (hidden[own] * factor).to(hidden.dtype)
                    # Over several chunks it is summed up in fp32 or wider, as over several micro-batches.
                    of_head = part if of_head is None else of_head.to(grad.dtype).add_(part)
        return of_hidden, None if of_head is None else of_head.to(head.dtype), None


def _chunks(targets: Tensor, head: Tensor) -> list[slice]:
    """Of the targets, all but the last equally many, and at least one chunk."""
    size = max(1, CHUNK_BYTES // (head.shape[0] * head.element_size()))
    size -= size % 16 if size > 16 else 0  # for some other numbers of rows oneDNN takes half as long again
    starts = range(0, max(1, len(targets)), size)
    return [slice(start, min(start + size, len(targets))) for start in starts]


def _gradient(hidden: Tensor, head: Tensor, targets: Tensor, into: Tensor) -> Tensor:
    """The losses of a chunk; the gradients of its logits stand in the first rows of `into` then."""
    logits = into[: len(targets)]
    with torch.autocast(hidden.device.type, enabled=False):
        torch.mm(hidden, head.t(), out=logits)
    return _to_gradient(logits, targets)


def _to_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """The losses of a chunk; its logits become their gradients, in place."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = logits.new_empty(len(targets), dtype=wide)
    size = max(1, BLOCK // logits.shape[1]) if logits.device.type == "cpu" else len(targets)
    # An exponential that underflows takes the CPU twenty times as long as another. This one is nothing beside a sum
    # that is at least 1.
    lowest = 0.9 * math.log(torch.finfo(wide).tiny)
    for start in range(0, len(targets), size):
        own = slice(start, start + size)
        index = targets[own, None]
        each = logits[own] - logits[own].amax(-1, keepdim=True).to(wide)
        wanted = each.gather(1, index)[:, 0]
        total = each.clamp_min_(lowest).exp_().sum(-1, keepdim=True)
        losses[own] = total[:, 0].log() - wanted
        each.div_(total).scatter_add_(1, index, -torch.ones_like(index, dtype=wide))
        logits[own] = each
    return losses
