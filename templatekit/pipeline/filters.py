"""Excludes the records that do not meet the conditions of the option `filter`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from templatekit.config.filter_expression import FilterExpression
from templatekit.errors import ExcludedRecord, RecordError
from templatekit.sources.grouping import columns_of
from templatekit.types import Record

FILTERED = "filtered"
"""Reason code of excluded records."""


def filtered(
    records: Iterable[Record | RecordError], conditions: Sequence[FilterExpression]
) -> Iterator[Record | RecordError]:
    """The records, with an `ExcludedRecord` in place of each that fails a condition.

    A `RecordError` that names the condition replaces a record on which it cannot be evaluated.
    """
    for record in records:
        yield record if isinstance(record, RecordError) else _check(record, conditions)


def _check(record: Record, conditions: Sequence[FilterExpression]) -> Record | RecordError:
    for condition in conditions:
        try:
            if not condition.holds(columns_of(record)):
                return ExcludedRecord(f"not {condition.text}", reason=FILTERED)
        except ValueError as error:
            return RecordError(f"filter {condition.text!r}: {error}", reason="filter_failed")
    return record
