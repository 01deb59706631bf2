"""Cross-entropy of a linear head, computed in chunks of logits, each of which becomes its own gradient in place.

With a large vocabulary the logits of a few targets take a gigabyte, and every pass over them costs as much as the
matrix product that computed them. Here the softmax of a chunk runs over blocks that fit a processor's cache. For the
backward pass only the gradient of the loss with respect to the logits is saved, in the narrow type of the matrix
products.
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
"""Size of one chunk of logits; only one is in memory at a time. The gradients of the first chunk are saved for the
backward pass, which computes those of the other chunks again."""
BLOCK_LOGITS = 2**19
"""Count of logits that go through the softmax together on the CPU: few enough for the processor's cache."""


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each target in nats, shape (targets,), for the logits `hidden @ head.T`.

    The arguments have shapes (targets, hidden size), (vocabulary, hidden size) and (targets,). Matrix products are
    computed in the type of `hidden`, to which `head` is cast. All else, the result included, is fp32 or wider.
    """
    return apply(_LinearCrossEntropy, hidden, head.to(hidden.dtype), targets)


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        losses = hidden.new_empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32))
        chunks = _chunks(targets, head)
        logits = hidden.new_empty(len(targets[chunks[0]]), len(head))
        # The first chunk is computed last: its gradients stay in `logits`. No chunk is longer than the first.
        for rows in reversed(chunks):
            losses[rows] = _losses_and_gradient(hidden[rows], head, targets[rows], logits)
        ctx.save_for_backward(hidden, head, targets, logits)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets, logits = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_head: Tensor | None = None
        for index, rows in enumerate(_chunks(targets, head)):
            if index:
                _losses_and_gradient(hidden[rows], head, targets[rows], logits)
            gradient = logits[: len(targets[rows])]
            factor = grad[rows, None]
            with torch.autocast(hidden.device.type, enabled=False):
                if grad_hidden is not None:
                    grad_hidden[rows] = (gradient @ head) * factor
                if ctx.needs_input_grad[1]:
                    part = gradient.t() @ (hidden[rows] * factor).to(hidden.dtype)
                    # The sum over several chunks is in fp32 or wider, as the sum over micro-batches is.
                    grad_head = part if grad_head is None else grad_head.to(grad.dtype).add_(part)
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None


def _chunks(targets: Tensor, head: Tensor) -> list[slice]:
    """Split the targets into chunks of equal size, the last one shorter; there is always at least one."""
    size = max(1, CHUNK_BYTES // (head.shape[0] * head.element_size()))
    size -= size % 16 if size > 16 else 0  # for some counts that are no multiple of 16, oneDNN takes half as long again
    starts = range(0, max(1, len(targets)), size)
    return [slice(start, min(start + size, len(targets))) for start in starts]


def _losses_and_gradient(hidden: Tensor, head: Tensor, targets: Tensor, buffer: Tensor) -> Tensor:
    """Return the losses of a chunk, and write the gradients of its logits to the first rows of `buffer`."""
    logits = buffer[: len(targets)]
    with torch.autocast(hidden.device.type, enabled=False):
        torch.mm(hidden, head.t(), out=logits)
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = logits.new_empty(len(targets), dtype=wide)
    size = max(1, BLOCK_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(targets)
    # An exponential that underflows takes the CPU twenty times as long as others. The exponential of this limit does
    # not underflow, and it is negligible beside the sum, which is at least 1.
    lowest = 0.9 * math.log(torch.finfo(wide).tiny)
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        target_index = targets[rows, None]
        block = logits[rows] - logits[rows].amax(-1, keepdim=True).to(wide)
        target_scores = block.gather(1, target_index)[:, 0]
        total = block.clamp_min_(lowest).exp_().sum(-1, keepdim=True)
        losses[rows] = total[:, 0].log() - target_scores
        block.div_(total).scatter_add_(1, target_index, -torch.ones_like(target_index, dtype=wide))
        logits[rows] = block
    return losses
