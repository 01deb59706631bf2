"""Shuffles records by a seed, with at most one buffer of them in memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

from templatekit.errors import RecordError
from templatekit.sources.grouping import RecordGroup
from templatekit.sources.limits import SizedRecord, told_size
from templatekit.types import Record

T = TypeVar("T")


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


def shuffled(items: Iterable[T], *, seed: int, buffer: int) -> Iterator[T]:
    """The items in an order that `seed` decides: the next item is always drawn from the `buffer` oldest ones left.

    If the buffer holds all items, every order is equally likely.
    """
    rng = random.Random(seed)
    held: list[T] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        index = rng.randrange(buffer)
        yield held[index]
        held[index] = item
    rng.shuffle(held)
    yield from held
