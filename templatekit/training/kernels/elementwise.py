"""What models do between matrix products, in few passes over memory, forwards and backwards.

On a CPU such work is as slow as the memory that it moves. Autograd moves each intermediate value of a norm or a
rotation several times and keeps some for the backward pass; these functions keep the input alone and write the
gradient out. They compute in fp32 or wider.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from templatekit.training.kernels.autograd import apply, cast_backward, cast_forward


def rms_norm(states: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """`states / sqrt(mean(states ** 2) + eps) * (weight + offset)` over the last dimension.

    The result has the wider type of both.
    """
    return apply(_RMSNorm, states, weight, eps, offset)


class _RMSNorm(Function):
    @staticmethod
    @cast_forward(torch.float32)
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
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
        along = torch.mv(product.view(-1, product.shape[-1]), factor).view_as(inverse)
        along = along.mul_(inverse.pow(3)).div_(wide.shape[-1])
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.mv(product.view(-1, product.shape[-1]).t(), inverse.flatten()).to(weight.dtype)
        of_states = torch.mul(grad, factor, out=product).mul_(inverse).addcmul_(wide, along, value=-1)
        return of_states.to(states.dtype), of_weight, None, None


def _factor(weight: Tensor, offset: float, like: Tensor) -> Tensor:
    weight = weight.to(like.dtype)
    return weight + offset if offset else weight


def rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of states of shape (..., width): `states * cos + rotated halves * sin`.

    Under autocast the result is bf16, which is what attention takes there; else the wider type of states and `cos`.
    """
    return apply(_Rotary, states, cos, sin)


class _Rotary(Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = states.dtype
        known = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return _rotated(states, cos, sin, known or torch.promote_types(states.dtype, cos.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin.roll(sin.shape[-1] // 2, dims=-1), ctx.dtype), None, None


def _rotated(states: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    wide = states.to(torch.promote_types(states.dtype, cos.dtype))
    half = wide.shape[-1] // 2
    result = wide * cos
    result[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
    result[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return result.to(dtype)


def lookup(weight: Tensor, ids: Tensor, padding: int | None = None) -> Tensor:
    """The rows of `weight` at `ids`, which has to be a leaf: the backward pass adds to its `grad` itself.

    Autograd would make a gradient of all rows, zeros but for a few, and add that. Rows at `padding` get no gradient.
    """
    return apply(_Lookup, weight, ids, padding)


class _Lookup(Function):
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
