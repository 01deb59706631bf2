"""Collects batches as tables in the process that makes them, and writes them as a shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from templatekit.cache.atomic_files import STATE, hash_file, place_of, staging, write_state
from templatekit.cache.example_json import NotJsonSafe
from templatekit.cache.tables import SampleTables
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.pipeline import Pipeline

TOKENS, TEXTS, EXAMPLES = "tokens.arrow", "texts.arrow", "examples.arrow"


class BatchCollector:
    """An observer that collects all batches with tokens as tables, and their counts."""

    def __init__(self) -> None:
        self.batches: list[SampleTables | SampleBatch] = []
        """The tables; a batch that they cannot hold stays as it is."""
        self.why = ""
        """What the first such batch holds."""
        self.counts = Counts()
        """The counts of these batches, without those of an exporter, which may refuse samples."""

    def observe(self, batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[SampleBatch]:
        """The batches, unchanged."""
        iterator = iter(batches)
        while (batch := self._next_counted(iterator, pipeline)) is not None:
            try:
                self.batches.append(SampleTables.from_batch(batch))
            except NotJsonSafe as error:
                self.why = self.why or str(error)
                self.batches.append(batch)
            yield batch

    def merge(self, later: BatchCollector) -> None:
        """Add the batches and counts that follow these."""
        self.batches += later.batches
        self.why = self.why or later.why
        self.counts.merge(later.counts)

    def _next_counted(self, batches: Iterator[SampleBatch], pipeline: Pipeline) -> SampleBatch | None:
        if type(pipeline.counts) is not Counts:  # a mixture, which counts by set and is not cached
            return next(batches, None)
        whole, pipeline.counts = pipeline.counts, Counts()
        try:
            return next(batches, None)
        finally:
            new, pipeline.counts = pipeline.counts, whole
            whole.merge(new)
            self.counts.merge(new)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """What a shard says about its records."""

    first_row: int
    """Count of records before the shard."""
    records: int
    """Number of records that were read for the shard."""
    is_last: bool
    """Whether the data end with the shard."""
    counts: Counts
    """The counts of its records alone."""
    adapter: str | None
    """The name of the adapter that read its records; None if it could be inferred from no record."""


def write_shard(target: Path, batches: Sequence[SampleTables], of_records: ShardState) -> None:
    """Write a shard, unless another process has written it meanwhile: both are the same.

    The shard says which one of which entry it is, so that `Shard` refuses it in any other place.

    Raises `RunError` where the disk is full; then no file is left.
    """
    import pyarrow as pa

    found = SampleTables.concatenate(batches)
    tables = {TOKENS: found.tokens, TEXTS: found.texts, EXAMPLES: found.examples}
    with staging(target) as folder:
        for name, table in tables.items():
            with (folder / name).open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_batch(table)
        state = {
            **place_of(target),
            "first_row": of_records.first_row,
            "records": of_records.records,
            "is_last": of_records.is_last,
            "samples": len(found),
            "counts": of_records.counts.as_dict(),
            "adapter": of_records.adapter,
            "origins": [[o.kind, o.message, o.field, o.generation] for o in found.origins],
            "roles": list(found.roles),
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "xxh3_128": hash_file(folder / name)} for name in tables
            },
        }
        write_state(folder / STATE, state)
