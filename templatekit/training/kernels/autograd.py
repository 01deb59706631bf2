"""torch's decorators and calls of functions with a backward pass of their own, which torch leaves without types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function

Method = TypeVar("Method", bound=Callable[..., Any])


def apply(function: type[Function], *arguments: Any) -> Tensor:
    """What the function's `forward` returns for these arguments, its `backward` ready for gradients."""
    result: Tensor = function.apply(*arguments)
    return result


def cast_forward(dtype: torch.dtype) -> Callable[[Method], Method]:
    """Decorates a `forward` that under the CPU's autocast gets its tensors in this type, and runs without autocast."""
    decorate: Callable[[Method], Method] = custom_fwd(device_type="cpu", cast_inputs=dtype)
    return decorate


def cast_backward(method: Method) -> Method:
    """Decorates the `backward` of such a function, which runs as the `forward` did."""
    decorated: Method = custom_bwd(method, device_type="cpu")
    return decorated
