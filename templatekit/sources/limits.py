"""How large a record may be, and how much may be read in vain: no file fills the memory, and none is read forever.

The bounds follow from one option, `max_record_size`. A file that breaks one of them is damaged, or no data set, or was
made to do harm: a line without an end, a quote that is never closed, megabytes of blank lines, a bomb (a small
compressed file that unpacks to terabytes).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar

from templatekit.errors import RecordError, SourceError
from templatekit.hooks.contracts import Source
from templatekit.types import Record

MEGABYTE = 1_000_000
DEFAULT_RECORD_SIZE = 16
"""In MB."""

_Source = TypeVar("_Source", bound="LimitedSource")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what is read. All are in bytes, or in characters where text is no longer bytes."""

    record: int = DEFAULT_RECORD_SIZE * MEGABYTE
    """The largest record; also the longest white space before one."""

    @property
    def large(self) -> int:
        """The largest record that need not tell its size.

        As many as a batch, a shard of the cache or a buffer has are about as large as one record may be.
        """
        return self.record // 8192

    @property
    def whole(self) -> int:
        """The largest JSON object that holds all rows, since it is read as one value."""
        return 4 * self.record

    @property
    def skipped(self) -> int:
        """How much of a record that is too large is read, without keeping it, to find the next one."""
        return 256 * self.record

    @property
    def unpacked(self) -> int:
        """The largest Parquet or Arrow file in a stream, which is copied to a file before its first row is read."""
        return 1024 * self.record


DEFAULT_LIMITS = Limits()


class LimitedSource(Source):
    """A source that keeps the limits by itself. The records of any other are measured after they were read."""

    limits: Limits = DEFAULT_LIMITS

    def limited(self: _Source, limits: Limits) -> _Source:
        """The same source with other limits."""
        source = copy(self)
        source.limits = limits
        return source


class SizedRecord(dict[str, Any]):
    """A record that tells its size where it is large, so that batches count bytes as well as rows."""

    size: int = 0
    """In bytes or characters; 0 for a small record."""


def sized(record: Record, size: int, limits: Limits) -> Record:
    """The record; one that tells its size, where it is large."""
    if size <= limits.large:
        return record
    large = SizedRecord(record)
    large.size = size
    return large


def told_size(record: object) -> int:
    """The size that a large record tells; 0 for any other."""
    return record.size if isinstance(record, SizedRecord) else 0


def too_large(found: int, limits: Limits) -> RecordError:
    """The error of a record of `found` bytes."""
    return RecordError(
        f"too large; found {in_megabytes(found)}; expected at most {in_megabytes(limits.record)}; to allow more: "
        "--max-record-size",
        reason="too_large",
    )


def no_next_row(address: str, row: int, found: int, what: str) -> SourceError:
    """The error of a file in which no row after `row` can be found, because of `what`."""
    return SourceError(
        f"{address}: row {row} is too large; found more than {in_megabytes(found)} {what}; no row after that can be "
        "read; correct the file, or allow larger records: --max-record-size"
    )


def check_blank(found: int, address: str, limits: Limits) -> None:
    """Raise `SourceError` for too much white space where a row is due."""
    if found > limits.record:
        raise SourceError(
            f"{address}: found more than {in_megabytes(limits.record)} of blank lines or spaces where a row was due; "
            "expected rows; remove the blank lines (for more of them: --max-record-size)"
        )


def in_megabytes(size: int) -> str:
    """A size in words: `16 MB`, `0.2 MB`, `999 bytes`."""
    return f"{size} bytes" if size < MEGABYTE / 10 else f"{round(size / MEGABYTE, 1):,g} MB"


def size_of(value: object) -> int:
    """The size of the texts and bytes in a record, keys included; a number or null counts as one byte."""
    size, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (str, bytes, bytearray)):
            size += len(item)
        elif isinstance(item, dict):
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, (list, tuple)):
            stack += item
        else:
            size += 1
    return size
