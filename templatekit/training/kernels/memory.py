"""What the libraries below PyTorch do with memory on the CPU, where a step frees and takes the same gigabytes again."""

from __future__ import annotations

import ctypes
import os
import sys

from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names for what `mallopt` sets (malloc.h)."""


def keep_freed_memory() -> bool:
    """Has the C library keep freed memory rather than give it back; whether it does so from now on.

    By default glibc returns every large block to the system at once, and the system clears each page anew. It holds for
    the whole process, on Linux with glibc; elsewhere nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def is_large(weight: Tensor) -> bool:
    """Whether what is made of a weight in every step should have a lasting place, which only blocks on the CPU need.

    glibc gives aligned memory from blocks with room to spare alone, so that one which was freed is not found for the
    next of its size (2.36 and before). Where smaller ones then settle in it, the heap grows by another.
    """
    return weight.device.type == "cpu" and weight.numel() * weight.element_size() >= _LARGE


_LARGE = 2**25
"""Bytes. Smaller ones are many of one size, side by side: freed together, they are one block with room to spare."""

_CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own setting, and that of the layer between it and PyTorch."""


def keep_few_kernels(tokens: int) -> None:
    """Has oneDNN keep the kernels of about two packs of so many tokens, not of the last 1,024 shapes.

    It makes one for each shape of a product, half a megabyte a piece, and nearly every pack brings new shapes. Kept
    among the states of many steps, they also keep what is freed around them from being one block again, so that a
    process grows with every step. A pack of 2,048 tokens needs about 60. It holds for the whole process, unless oneDNN
    has been at work before or the environment says otherwise.
    """
    for name in _CAPACITIES:
        os.environ.setdefault(name, str(max(128, tokens // 16)))
