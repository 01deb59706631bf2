"""Typed versions of PyTorch's helpers for autograd functions, which PyTorch leaves without types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function

Method = TypeVar("Method", bound=Callable[..., Any])


def apply(function: type[Function], *arguments: Any) -> Tensor:
    """Run an autograd function's `forward`; autograd later calls its `backward`."""
    result: Tensor = function.apply(*arguments)
    return result


def cast_forward(dtype: torch.dtype) -> Callable[[Method], Method]:
    """Decorate a `forward`: under CPU autocast its tensors are cast to `dtype`, and it runs without autocast."""
    decorate: Callable[[Method], Method] = custom_fwd(device_type="cpu", cast_inputs=dtype)
    return decorate


def cast_backward(method: Method) -> Method:
    """Decorate the `backward` of such a function: it runs with the autocast state of the `forward`."""
    decorated: Method = custom_bwd(method, device_type="cpu")
    return decorated
