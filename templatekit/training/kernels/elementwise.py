"""The work of models between matrix products, in few passes over memory, forwards and backwards.

On a CPU such work is as slow as the memory traffic that it causes. Autograd reads and writes each intermediate value of
a norm or a rotary embedding several times, and saves some for the backward pass. These autograd functions save only the
input, and write the gradient directly. They compute in fp32 or wider.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from templatekit.training.kernels.autograd import apply, at_least_fp32, autocast_dtype, cast_backward, cast_forward


def rms_norm(states: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """RMSNorm: `states / sqrt(mean(states ** 2) + eps) * (weight + offset)` over the last dimension.

    The result has the wider of the types of `states` and `weight`.
    """
    return apply(_RMSNorm, states, weight, eps, offset)


class _RMSNorm(Function):
    @staticmethod
    @cast_forward(torch.float32)
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        wide = at_least_fp32(states)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(wide.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(states, weight, inverse)
        ctx.offset = offset
        scaled = wide * inverse
        scaled.mul_(_factor(weight, offset, scaled))
        result: Tensor = scaled.to(torch.promote_types(states.dtype, weight.dtype))
        return result

    @staticmethod
    @cast_backward
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, inverse = ctx.saved_tensors
        wide, grad = states.to(inverse.dtype), grad.to(inverse.dtype)
        factor = _factor(weight, ctx.offset, inverse)
        product = grad * wide
        projection = torch.mv(product.view(-1, product.shape[-1]), factor).view_as(inverse)
        projection = projection.mul_(inverse.pow(3)).div_(wide.shape[-1])
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.mv(product.view(-1, product.shape[-1]).t(), inverse.flatten()).to(weight.dtype)
        grad_states = torch.mul(grad, factor, out=product).mul_(inverse).addcmul_(wide, projection, value=-1)
        return grad_states.to(states.dtype), grad_weight, None, None


def _factor(weight: Tensor, offset: float, like: Tensor) -> Tensor:
    weight = weight.to(like.dtype)
    return weight + offset if offset else weight


def rotary_embedding(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of states of shape (..., head_dim): `states * cos + rotated halves * sin`.

    Under autocast the result has autocast's type, as attention needs it. Else it has the wider of the types of `states`
    and `cos`.
    """
    return apply(_Rotary, states, cos, sin)


class _Rotary(Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = states.dtype
        return _rotate(states, cos, sin, autocast_dtype(states) or torch.promote_types(states.dtype, cos.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin.roll(sin.shape[-1] // 2, dims=-1), ctx.dtype), None, None


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    wide = states.to(torch.promote_types(states.dtype, cos.dtype))
    half = wide.shape[-1] // 2
    result = wide * cos
    result[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
    result[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return result.to(dtype)


def embedding_lookup(weight: Tensor, ids: Tensor, padding: int | None = None) -> Tensor:
    """Return the rows of `weight` at `ids`. The `weight` must be a leaf: the backward pass adds to its `grad` itself.

    Autograd would create a gradient for all rows, nearly all of them zero, and add that. The row of the id `padding`
    gets no gradient.
    """
    return apply(_EmbeddingLookup, weight, ids, padding)


class _EmbeddingLookup(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.weight, ctx.ids, ctx.padding = weight, ids, padding
        return embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        weight, ids = ctx.weight, ctx.ids
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if ctx.padding is not None:
            grad = grad.masked_fill((ids == ctx.padding)[..., None], 0)
        weight.grad.index_add_(0, ids.flatten(), grad.reshape(-1, grad.shape[-1]).to(weight.dtype))
        return None, None, None
