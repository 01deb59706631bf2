"""`Chunk`: records that are worked on together, in this process or in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHUNK_SIZE = 512
"""Records of a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive records of a data set. Chunks can be pickled; any pipeline with the same options can process them."""

    records: list[Any]
    """Records, and a `RecordError` for each that could not be read. In a mixture, each has the index of its set."""
    first_row: int = 0
    """The row of the first record; a shuffled record knows its own row."""
    from_caller: bool = False
    """Whether the caller of the API passed the records, so that errors have no address to name."""
    ends_shard: bool = False
    """Whether the chunk is the last of a full shard of the cache. No chunk of an incomplete shard ends it."""
    adapters: tuple[str | None, ...]
    """The adapter of each data set, by name; None until a record has shown it."""
    error: Exception | None = None
    """The error that ended the reading; it is raised after these records are processed."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """How often mixing read the rows of each set, in words, by the set's name; only a mixture's last chunk has it."""
