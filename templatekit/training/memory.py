"""Memory that a step has freed stays with the process, for the next step to use."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names for what `mallopt` sets (malloc.h)."""


def keep_freed_memory() -> bool:
    """Has the C library keep freed memory rather than give it back; whether it does so from now on.

    A step on the CPU frees and takes the same gigabytes again and again. By default glibc returns every large block to
    the system at once, and the system clears each page anew. The peak is the same.
    It holds for the whole process, on Linux with glibc; elsewhere nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
