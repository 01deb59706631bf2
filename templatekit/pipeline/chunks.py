"""`Chunk`: records that are worked on together, in this process or in a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

CHUNK_SIZE = 512
"""Records of a chunk."""
CHUNK_BYTES = 1 << 24
"""Bytes of large records after which a chunk, or anything else that counts items, ends early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive records of a data set. Chunks can be pickled; any pipeline with the same options can process them."""

    records: list[Any]
    """Records, and a `RecordError` for each that could not be read. In a mixture, each has the index of its set."""
    first_row: int = 0
    """The row of the first record; a shuffled record knows its own row."""
    from_caller: bool = False
    """Whether the caller of the API passed the records, so that errors have no address to name."""
    adapters: tuple[str | None, ...]
    """The adapter of each data set, by name; None until a record has shown it."""
    error: Exception | None = None
    """The error that ended the reading; it is raised after these records are processed."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """How often mixing read the rows of each set, in words, by the set's name; only a mixture's last chunk has it."""


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
