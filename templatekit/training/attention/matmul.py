"""Matrix products of bf16 states with sums in fp32, as attention scores need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def scaled_bmm(first: Tensor, second: Tensor, source_dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Return `scale * first @ second`, for shapes (rows, n, width) and (rows, width, m) of one type.

    `source_dtype` is the type that the values were cast from. The product of fp32 tensors whose values were bf16 is
    cheaper.
    """
    ignored = first.new_empty(())
    with _as_bf16(first.dtype == torch.float32 and source_dtype == torch.bfloat16):
        return torch.baddbmm(ignored, first, second, beta=0, alpha=scale)


@contextmanager
def _as_bf16(allowed: bool) -> Iterator[None]:
    """Allow PyTorch to compute fp32 products on the CPU as bf16 products, where it can.

    The values are bf16 already, so nothing is rounded. With this permission PyTorch passes fp32 products to oneDNN,
    whose kernels took half the time of MKL's where this was measured, on AMD's Zen 5.
    """
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)  # PyTorch 2.9 and later
    before = getattr(setting, "fp32_precision", None)
    if not allowed or before is None:
        yield
        return
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
