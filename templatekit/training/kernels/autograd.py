"""What autograd functions share: PyTorch's helpers with types, and the types to compute in."""

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


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return autocast's type on the device of this tensor; None where autocast is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return the tensor in its own type, or in fp32 if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
