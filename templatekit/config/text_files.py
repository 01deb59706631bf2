"""Finds and reads the small text files that options name: templates and recipes."""

from __future__ import annotations

import stat
from pathlib import Path

MAX_BYTES = 1_000_000
"""The most bytes of such a file; published templates have up to 20,000."""


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file; False as well for text that cannot be a path."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def read_text_file(path: Path) -> str:
    """The UTF-8 text of a regular file. Raises `OSError` or `ValueError` that says why there is none.

    A pipe might never end, and a device (`/dev/zero`) never does.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ValueError("found a folder; expected a file")
    if not stat.S_ISREG(mode):
        raise ValueError("found a pipe, a socket or a device; expected a regular file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"found {path.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
    return content.decode("utf-8")
