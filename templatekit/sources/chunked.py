"""`chunked`: items in lists, bounded by their number and by their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

CHUNK_BYTES = 1 << 24
"""Bytes of large records after which a chunk, or anything else that counts items, ends early."""


def chunked(items: Iterable[T], size: int, bytes_of: Callable[[T], int]) -> Iterator[tuple[list[T], Exception | None]]:
    """Lists of `size` items, each with the exception that the next item raised, or None.

    The last list is shorter, and so is one whose items have many bytes together, by `bytes_of`. The caller can first
    finish the items that came before an exception, after which no others follow.
    """
    iterator = iter(items)
    while True:
        found: list[T] = []
        error = None
        taken = 0
        try:
            for item in islice(iterator, size):
                found.append(item)
                taken += bytes_of(item)
                if taken > CHUNK_BYTES:
                    break
        except Exception as raised:
            error = raised
        if found or error:
            yield found, error
        if error or (len(found) < size and taken <= CHUNK_BYTES):
            return
