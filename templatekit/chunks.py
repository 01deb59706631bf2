"""Records with their places, so many at a time: what is worked on as one, in this process or in another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

CHUNK = 512
"""Records of a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some records of a data set. It can be sent: whoever has a pipeline of the same options knows what comes of it."""

    records: list[Any]
    """Records and what is wrong with them, as they are read; of a mixture each with the number of its set."""
    first_row: int = 0
    """Of the records that do not know theirs."""
    adapters: tuple[str | None, ...] = ()
    """The name of the adapter of each set; None where no record has told it yet."""


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time. Where getting one raises, those before it come first."""
    iterator = iter(items)
    while True:
        chunk: list[T] = []
        try:
            chunk.extend(islice(iterator, size))
        except Exception:
            if chunk:
                yield chunk
            raise
        if not chunk:
            return
        yield chunk
