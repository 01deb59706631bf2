"""`MissingShards`: reads the records of the shards that are to be made, and skips those on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

from templatekit.pipeline.chunks import Chunk
from templatekit.pipeline.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingShards:
    """A `ChunkReader` of the shards to be made; each chunk lies within one shard."""

    shard_records: int
    """Records of a shard."""
    first: int
    """Index of the first shard to be made. The records before it are read and skipped."""
    present: frozenset[int] = frozenset()
    """Later shards that need not be made."""
    only_first: bool = False
    """Whether to read only up to the end of the first shard."""

    def __call__(self, pipeline: Pipeline, records: Iterable[Any] | None = None) -> Iterator[Chunk]:
        """The chunks of the options' data set, or of a caller's own `records`."""
        opened, from_caller = pipeline.open(records), records is not None
        for index in range(self.first + 1) if self.only_first else count():
            shard, first_row, found = islice(opened, self.shard_records), index * self.shard_records, 0
            for chunk in pipeline.split_into_chunks(shard, first_row=first_row, from_caller=from_caller):
                found += len(chunk.records)
                if index == self.first or (index > self.first and index not in self.present):
                    yield chunk
                elif chunk.error is not None:  # reading cannot continue
                    yield replace(chunk, records=[])
            if found < self.shard_records:
                return
