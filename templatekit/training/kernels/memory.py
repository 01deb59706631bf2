"""Settings of memory allocators below PyTorch on the CPU, where each step frees and allocates the same gigabytes."""

from __future__ import annotations

import ctypes
import os
import sys

from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The parameters of `mallopt`, from glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory instead of returning it to the system; return whether this worked.

    By default glibc returns every large block to the system at once, and the system clears each page again when it is
    next used. The setting holds for the whole process. It needs Linux with glibc; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def needs_persistent_buffer(weight: Tensor) -> bool:
    """Whether tensors that each step makes from a weight should reuse one buffer: large ones on the CPU should.

    glibc (2.36 and before) takes aligned memory only from free blocks that are larger than requested. It therefore does
    not find a freed block for the next tensor of the same size. If smaller tensors then use part of that block, the
    heap grows by another block.
    """
    return weight.device.type == "cpu" and weight.numel() * weight.element_size() >= _LARGE_BYTES


_LARGE_BYTES = 2**25
"""In bytes. Many smaller tensors have one size and lie side by side: freed together, they are a large enough block."""

_CACHE_CAPACITY_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The environment variables of oneDNN, and of the layer between oneDNN and PyTorch."""


def limit_kernel_cache(tokens: int) -> None:
    """Have oneDNN cache the kernels of about two packs of `tokens` tokens, instead of those of the last 1,024 shapes.

    oneDNN makes a kernel of half a megabyte for each shape of a matrix product, and nearly every pack has new shapes.
    Cached kernels lie between the tensors of many steps and keep the memory freed around them from merging, so the
    process grows with every step. A pack of 2,048 tokens needs about 60 kernels. The setting holds for the whole
    process, unless oneDNN has run before or the environment variables are already set.
    """
    for name in _CACHE_CAPACITY_VARIABLES:
        os.environ.setdefault(name, str(max(128, tokens // 16)))
