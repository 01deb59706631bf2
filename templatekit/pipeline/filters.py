"""Leaves out the records that do not meet a condition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from templatekit.config.expressions import Expression
from templatekit.errors import LeftOut, RecordError
from templatekit.sources.grouping import columns_of
from templatekit.types import Record

FILTERED = "filtered"
"""The reason under which such records are counted."""


def filtered(
    records: Iterable[Record | RecordError], conditions: Sequence[Expression]
) -> Iterator[Record | RecordError]:
    """The records, a `LeftOut` in the place of each that fails one of the conditions.

    A record on which a condition cannot be tried is a `RecordError` that names both.
    """
    for record in records:
        yield record if isinstance(record, RecordError) else _judged(record, conditions)


def _judged(record: Record, conditions: Sequence[Expression]) -> Record | RecordError:
    for condition in conditions:
        try:
            if not condition.holds(columns_of(record)):
                return LeftOut(f"not {condition.text}", reason=FILTERED)
        except ValueError as error:
            return RecordError(f"filter {condition.text!r}: {error}", reason="filter_failed")
    return record
