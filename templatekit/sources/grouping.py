"""Brings together records that make one example, such as the messages of a tree, one a row."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from templatekit.errors import RecordError
from templatekit.types import Record


class RecordGroup(dict[str, Any]):
    """Records in a row as one: `{"records": [...]}`."""

    row: int
    """Its number, where it does not come in its turn."""


def group_records(
    records: Iterable[Record | RecordError], group: Callable[[Record], Hashable]
) -> Iterator[Record | RecordError]:
    """The records, those in a row with one value of `group` as one; None is a record by itself.

    One group is held at a time. A row that cannot be read does not part a group: it comes before it.
    """
    pieces: list[Record] = []
    shared: Hashable = None
    for record in records:
        if isinstance(record, RecordError):
            yield record
            continue
        value = group(record)
        if pieces and value != shared:
            yield RecordGroup(records=pieces)
            pieces = []
        if value is None:
            yield record
        else:
            pieces.append(record)
        shared = value
    if pieces:
        yield RecordGroup(records=pieces)


def columns_of(record: Record) -> Record:
    """The record, or of a gathered one the columns of all its records, each with its first value."""
    if not isinstance(record, RecordGroup):
        return record
    return {key: value for piece in reversed(record["records"]) for key, value in piece.items()}
