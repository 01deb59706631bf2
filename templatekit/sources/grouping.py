"""Groups the records that make one example, such as the messages of a tree with one message a row."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator

from templatekit.errors import RecordError
from templatekit.sources.limits import SizedRecord, told_size
from templatekit.types import Record


class RecordGroup(SizedRecord):
    """Consecutive records as one record: `{"records": [...]}`."""

    row: int
    """The row number, set by `shuffle.with_row` only."""

    @classmethod
    def of(cls, members: list[Record]) -> RecordGroup:
        """The group of these records."""
        group = cls(records=members)
        group.size = sum(map(told_size, members))
        return group


def group_records(
    records: Iterable[Record | RecordError], group: Callable[[Record], Hashable]
) -> Iterator[Record | RecordError]:
    """The records, with consecutive records of equal `group` joined; None leaves a record by itself.

    Only one group is in memory. A `RecordError` does not split a group: it is yielded before the group.
    """
    members: list[Record] = []
    shared: Hashable = None
    for record in records:
        if isinstance(record, RecordError):
            yield record
            continue
        value = group(record)
        if members and value != shared:
            yield RecordGroup.of(members)
            members = []
        if value is None:
            yield record
        else:
            members.append(record)
        shared = value
    if members:
        yield RecordGroup.of(members)


def columns_of(record: Record) -> Record:
    """The record itself; for a group, the columns of all its records, each with its first value."""
    if not isinstance(record, RecordGroup):
        return record
    return {key: value for member in reversed(record["records"]) for key, value in member.items()}
