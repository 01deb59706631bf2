"""`MissingShards`: reads the records of the shards that are to be made, and skips those on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

from templatekit.pipeline.chunks import Chunk
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources.limits import told_size


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingShards:
    """A `ChunkReader` of the shards to be made; each chunk lies within one shard.

    The records alone decide where a shard ends, so a later run finds the same shards, with any number of workers.
    """

    shard_records: int
    """The most records of a shard."""
    shard_bytes: int
    """Bytes of large records after which a shard ends early."""
    first: int
    """Index of the first shard to be made."""
    first_row: int
    """Count of records before that shard. They are read and skipped."""
    present: frozenset[int] = frozenset()
    """Later shards that need not be made."""
    only_first: bool = False
    """Whether to read only up to the end of the first shard."""

    def __call__(self, pipeline: Pipeline, records: Iterable[Any] | None = None) -> Iterator[Chunk]:
        """The chunks of the options' data set, or of a caller's own `records`."""
        opened, from_caller = pipeline.open(records), records is not None
        skipped = pipeline.split_into_chunks(islice(opened, self.first_row), from_caller=from_caller)
        yield from (replace(chunk, records=[]) for chunk in skipped if chunk.error is not None)
        first_row = self.first_row
        for index in [self.first] if self.only_first else count(self.first):
            shard = _ShardRecords(opened, self.shard_records, self.shard_bytes)
            for chunk in pipeline.split_into_chunks(shard, first_row=first_row, from_caller=from_caller):
                if index == self.first or index not in self.present:
                    yield replace(chunk, ends_shard=shard.is_full)
                elif chunk.error is not None:  # reading cannot continue
                    yield replace(chunk, records=[])
            if not shard.is_full:
                return
            first_row += shard.records


class _ShardRecords:
    """The records of one shard, which are taken from an iterator."""

    def __init__(self, opened: Iterator[Any], most_records: int, most_bytes: int) -> None:
        self._opened, self._most_records, self._most_bytes = opened, most_records, most_bytes
        self.records = self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the shard takes no more records; the other end is that of the data."""
        return self.records >= self._most_records or self._bytes > self._most_bytes

    def __iter__(self) -> Iterator[Any]:
        for record in self._opened:
            self.records += 1
            self._bytes += told_size(record)
            yield record
            if self.is_full:
                return
