"""Matrix products of bf16 states with sums in fp32, which attention's scores need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def product(first: Tensor, second: Tensor, values: torch.dtype, scale: float = 1.0) -> Tensor:
    """`scale * first @ second`, of shapes (rows, n, width) and (rows, width, m) and of one type.

    `values` is the type that their numbers come from: of two in fp32 that were bf16 it is cheaper.
    """
    into = first.new_empty(())
    with _as_bf16(first.dtype == torch.float32 and values == torch.bfloat16):
        return torch.baddbmm(into, first, second, beta=0, alpha=scale)


@contextmanager
def _as_bf16(allowed: bool) -> Iterator[None]:
    """Lets PyTorch compute products of fp32 numbers on the CPU as of bf16 ones, where it can.

    The numbers are bf16 ones already, so nothing is rounded. What is won is oneDNN: PyTorch gives it products in fp32
    under this leave alone, and where it was measured, on AMD's Zen 5, its kernels took half the time of MKL's.
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
