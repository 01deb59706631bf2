"""Records with their places, so many at a time: what is worked on as one, in this process or in another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

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
    given: bool = False
    """Whether they are a caller's own, with no address that errors could name."""
    adapters: tuple[str | None, ...]
    """The name of the adapter of each set; None where no record has told it yet."""
    error: Exception | None = None
    """What reading on raised: it has its turn behind these records."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """With a mixture's last chunk: what mixing did with the rows of a set."""


class UpToError(Generic[T]):
    """Items for who looks ahead: what getting one raised waits, as `error`, until those before it are dealt with."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self._items
        except Exception as raised:
            self.error = raised


class Some(NamedTuple, Generic[T]):
    """Some items in a row."""

    items: list[T]
    error: Exception | None
    """What getting the next one raised; there are no more then."""


def chunked(items: Iterable[T], size: int) -> Iterator[Some[T]]:
    """The items, so many at a time."""
    iterator = iter(items)
    while True:
        some: list[T] = []
        error = None
        try:
            some.extend(islice(iterator, size))
        except Exception as raised:
            error = raised
        if some or error:
            yield Some(some, error)
        if error or len(some) < size:
            return
