"""Shuffles records by a seed, with at most one buffer of them in memory, which is bounded by bytes too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from templatekit.errors import RecordError
from templatekit.sources.grouping import RecordGroup
from templatekit.sources.limits import SizedRecord, told_size
from templatekit.types import Record

T = TypeVar("T")

BUFFER_BYTES = 1 << 26
"""Bytes of large records that the buffer holds at most, or one record: 10,000 conversations have 6.7 kB each then."""


class NumberedRecord(SizedRecord):
    """A record with its row number, which its index in the iteration no longer shows."""

    row: int


def with_row(record: Record | RecordError, row: int) -> Record | RecordError:
    """The record with its row number; an error keeps the number that it has."""
    if isinstance(record, RecordError):
        return record.at(None, row)
    if isinstance(record, RecordGroup):  # `columns_of` must still recognize it
        record.row = row
        return record
    numbered = NumberedRecord(record)
    numbered.row = row
    if size := told_size(record):
        numbered.size = size
    return numbered


def row_of(record: Record | RecordError, default: int) -> int:
    """The row number that a record carries, or else `default`."""
    return getattr(record, "row", default) if isinstance(record, (NumberedRecord, RecordGroup)) else default


def shuffled(items: Iterable[T], *, seed: int, buffer: int, bytes_of: Callable[[T], int]) -> Iterator[T]:
    """The items in an order that `seed` decides: the next item is always drawn from the `buffer` oldest ones left.

    These are fewer where they have more than `BUFFER_BYTES` together, by `bytes_of`. So the items and the seed alone
    decide the order. If the buffer holds all items, every order is equally likely.
    """
    rng = random.Random(seed)
    held: list[T] = []
    taken = 0
    for item in items:
        size = bytes_of(item)
        place = len(held)
        while held and (len(held) >= buffer or taken + size > BUFFER_BYTES):
            place = rng.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            taken -= bytes_of(held[-1])
            yield held.pop()
        taken += size
        held.append(item)
        if place < len(held) - 1:  # the item takes the place of the one that was drawn last
            held[place], held[-1] = held[-1], held[place]
    rng.shuffle(held)
    yield from held
