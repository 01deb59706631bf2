"""Gives records in another order, which a seed decides, holding no more of them than a buffer does."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from templatekit.errors import RecordError
from templatekit.sources.grouping import RecordGroup
from templatekit.types import Record

T = TypeVar("T")


class NumberedRecord(dict[str, Any]):
    """A record that knows its row number, since it does not come in its turn."""

    row: int


def with_row(record: Record | RecordError, row: int) -> Record | RecordError:
    """The record, knowing its row; an error knows it too, if it did not know a better one."""
    if isinstance(record, RecordError):
        return record.at(None, row)
    if isinstance(record, RecordGroup):  # its own kind of record says how its columns are read
        record.row = row
        return record
    known = NumberedRecord(record)
    known.row = row
    return known


def row_of(record: Record | RecordError, default: int) -> int:
    """The row that a record knows, or the one of its turn."""
    return getattr(record, "row", default) if isinstance(record, (NumberedRecord, RecordGroup)) else default


def shuffled(items: Iterable[T], *, seed: int, buffer: int) -> Iterator[T]:
    """The items in an order that `seed` decides: each is drawn from the `buffer` oldest that are left.

    An order of all is as likely as any other where the buffer holds them all.
    """
    draw = random.Random(seed)
    held: list[T] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        index = draw.randrange(buffer)
        yield held[index]
        held[index] = item
    draw.shuffle(held)
    yield from held
