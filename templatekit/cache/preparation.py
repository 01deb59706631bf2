"""Goes through the shards of a data set in order: reads those on disk, and makes the others.

The first shard that is not on disk starts the work on all missing shards, in this process or by an engine's workers. It
reads the source once, to its end, and skips the shards that are on disk at that time. So the pipeline can remember
earlier records (groups, duplicates, a shuffled order). A shard ends after a fixed number of records, or of bytes of
large ones, so it is the same in every run. It says how many records it has, at which of all records it starts, and
whether the data end with it. The chunks come back in order; here they are concatenated to shards, and written.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

from templatekit.cache.atomic_files import Damaged
from templatekit.cache.code_hash import NotCacheable
from templatekit.cache.folder import open_entry, remove_shard, shard_folder, shard_indices
from templatekit.cache.key import cache_key, data_stamp, key_values
from templatekit.cache.missing_shards import MissingShards
from templatekit.cache.sequences import BatchColumns, ColumnarSamples, SampleColumns
from templatekit.cache.shard import Shard
from templatekit.cache.tables import SampleTables
from templatekit.cache.writer import BatchCollector, ShardState, write_shard
from templatekit.config.cache_folder import cache_folder
from templatekit.engines.jobs import Engine, Job, RunningChunk, output_chunks, run_chunks
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.mixture import Mixture
from templatekit.pipeline.outputs import Converter, LengthCounts, OutputChunk, discard_batches, keep_batches
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources.chunked import CHUNK_BYTES
from templatekit.types import Sample

SHARD_RECORDS = 8192
"""The most records of a shard: a stop loses the work on at most one, and one is in memory while it is made."""
SHARD_BYTES = CHUNK_BYTES
"""Bytes of large records after which a shard ends early: while it is made, it takes some ten times as many."""
T = TypeVar("T")
Say = Callable[[str], None]


def prepare_output(
    pipeline: Pipeline,
    converter: Converter,
    *,
    engine: Engine | None = None,
    lengths: LengthCounts | None = None,
    records: Iterable[Any] | None = None,
    say: Say = lambda line: None,
) -> Iterator[OutputChunk]:
    """The output chunks of the options' data set, or of a caller's own `records`.

    With the option `cache`, samples are cached on disk. `pipeline.counts` is the same in the end, whether samples were
    cached or made, here or by an engine's workers. `say` gets a line if cached samples are used or damaged, or if
    samples cannot be cached. Raises `RunError` where the disk is full.
    """
    preparation = _open_cache(pipeline, records, say)
    if preparation is not None:
        return preparation.outputs(converter, engine, lengths)
    chunks = None if records is None else pipeline.split_into_chunks(pipeline.open(records), from_caller=True)
    return output_chunks(pipeline, converter, engine=engine, chunks=chunks, observer=lengths)


def prepare_batches(
    pipeline: Pipeline, *, records: Iterable[Any] | None = None, say: Say = lambda line: None
) -> Iterator[SampleBatch]:
    """The same samples in batches, as `Pipeline.batches` gives them, made in this process."""
    preparation = _open_cache(pipeline, records, say)
    if preparation is not None:
        return (output.content for output in preparation.outputs(keep_batches, None, None))
    return pipeline.batches(None if records is None else pipeline.open(records))


def prepare_samples(
    pipeline: Pipeline, *, engine: Engine | None = None, say: Say = lambda line: None
) -> Sequence[Sample]:
    """All samples of the options' data set: memory-mapped with the option `cache`, else in memory.

    Tokens are in columns, except for a mixture.
    """
    preparation = _open_cache(pipeline, None, say)
    if preparation is not None:
        return ColumnarSamples(preparation.samples(engine))
    batches: Sequence[SampleTables | SampleBatch]
    if engine is None:
        batches = list(pipeline.batches())
    else:  # workers send tables: single samples take as long to pickle as to make
        collected = BatchCollector()
        list(output_chunks(pipeline, discard_batches, engine=engine, observer=collected))
        batches = collected.batches
    if isinstance(pipeline, Mixture) or pipeline.tokenizer is None:
        return [sample for batch in cast("list[SampleBatch]", batches) for sample in batch]
    return ColumnarSamples([_columns_in_memory(batch) for batch in batches])


def _columns_in_memory(batch: SampleTables | SampleBatch) -> SampleColumns:
    return batch if isinstance(batch, SampleTables) else BatchColumns(batch)


def _open_cache(pipeline: Pipeline, records: Iterable[Any] | None, say: Say) -> _Preparation | None:
    """The `_Preparation` of a pipeline; None without the option `cache`, or if the samples cannot be cached."""
    if not pipeline.options.cache:
        return None
    try:
        values = key_values(pipeline, records)
    except NotCacheable as error:
        say(f"cache: not used: {error}")
        return None
    entry = open_entry(cache_folder(pipeline.options.cache_dir), cache_key(values), values, pipeline)
    stamp = data_stamp(pipeline, records)
    return _Preparation(pipeline=pipeline, entry=entry, records=records, values=values, stamp=stamp, say=say)


@dataclass(kw_only=True)
class _Preparation:
    """One pass through the shards, from the first to the last."""

    pipeline: Pipeline
    entry: Path
    """The folder of the cache entry."""
    records: Iterable[Any] | None
    """A caller's own records; None for the options' data set."""
    values: dict[str, Any]
    """The values of which the cache key is the hash."""
    stamp: tuple[Any, ...]
    """The state of the data's files when the key was computed."""
    say: Say
    _running: Generator[RunningChunk, None, None] | None = None
    """The work on all missing shards, once the first of them is needed."""
    _present: frozenset[int] = frozenset()
    """The shards after the first missing one that were on disk when the work started."""
    _taken: int = 0
    """Number of shards taken from disk."""
    _first_row: int = 0
    """Count of records of the shards so far."""

    def __post_init__(self) -> None:
        # The adapter that was inferred from the records up to this shard; the work ahead may already know a later one.
        self._adapter = self.pipeline.reader.adapter_name

    def outputs(
        self, converter: Converter, engine: Engine | None, lengths: LengthCounts | None
    ) -> Iterator[OutputChunk]:
        """The output chunks of all shards."""
        try:
            for index in count():
                shard = self._cached_shard(index)
                if shard is None:
                    _, is_last = yield from self._make_shard(index, converter, engine, lengths)
                else:
                    self._take(shard)
                    batches = shard.batches()
                    yield from converter(batches if lengths is None else lengths.observe(batches), self.pipeline)
                    is_last = shard.is_last
                if is_last:
                    break
        finally:
            self._close()
        self.pipeline.check_any_left()

    def samples(self, engine: Engine | None) -> list[SampleColumns]:
        """The columns of all shards, after the missing ones are made; in memory where a shard cannot be cached."""
        found: list[SampleColumns] = []
        try:
            for index in count():
                shard = self._cached_shard(index, texts=False)
                if shard is not None:
                    self._take(shard)
                    found.append(shard)
                    is_last = shard.is_last
                else:
                    first_row = self._first_row
                    collected, is_last = _return_value(self._make_shard(index, discard_batches, engine, None))
                    made = self._open_shard(index, first_row, texts=False)
                    found += [made] if made is not None else map(_columns_in_memory, collected.batches)
                if is_last:
                    break
        finally:
            self._close()
        self.pipeline.check_any_left()
        return found

    def _cached_shard(self, index: int, *, texts: bool = True) -> Shard | None:
        """The shard on disk; None if it has to be made, or is already being made."""
        if self._running is not None and index not in self._present:
            return None
        return self._open_shard(index, self._first_row, texts=texts)

    def _open_shard(self, index: int, first_row: int, *, texts: bool) -> Shard | None:
        """The shard on disk that starts with this record, its files checked.

        One that is damaged, or does not start there, is reported and removed, to be made anew.
        """
        folder = shard_folder(self.entry, index)
        if not folder.exists():
            return None
        try:
            shard = Shard(folder)
            shard.check_start(first_row)
            shard.check(texts=texts)
        except Damaged as error:
            self.say(f"cache: a shard is damaged and made anew: {error}")
            remove_shard(folder)
            return None
        return shard

    def _take(self, shard: Shard) -> None:
        """Count a shard from disk as the pipeline would have counted its records."""
        if not self._taken:
            self.say(f"cache: examples are taken from {str(self.entry)!r}")
        self._taken += 1
        self._first_row += shard.records
        adapter = shard.adapter
        if self.pipeline.adapter is None:
            self.pipeline.take_adapters((adapter,))
        self._adapter = adapter or self._adapter
        self.pipeline.counts.merge(shard.counts)

    def _make_shard(
        self, index: int, converter: Converter, engine: Engine | None, lengths: LengthCounts | None
    ) -> Generator[OutputChunk, None, tuple[BatchCollector, bool]]:
        """The output chunks of a shard, which is written after the last.

        Returns its batches, and whether it is the last shard: no chunk ends it.
        """
        collected, records, is_last = BatchCollector(), 0, True
        running_chunks = self._running_chunks(index, converter, engine, lengths)
        while is_last and (running := next(running_chunks, None)) is not None:
            yield from running.outputs
            *others, collector = running.observers
            for observer in others:
                assert lengths is not None
                lengths.merge(cast("LengthCounts", observer))
            if not collected.why and (why := cast("BatchCollector", collector).why):
                self.say(f"cache: records from {self._first_row:,} on are not cached: one holds {why}")
            collected.merge(cast("BatchCollector", collector))
            records += running.record_count
            is_last = not running.ends_shard
            if (adapter := running.adapters[0]) is not None:
                self._adapter = adapter
        if not collected.why and self._is_data_unchanged():
            tables = cast("list[SampleTables]", collected.batches)
            folder = shard_folder(self.entry, index)
            state = ShardState(
                first_row=self._first_row,
                records=records,
                is_last=is_last,
                counts=collected.counts,
                adapter=self._adapter,
            )
            write_shard(folder, tables, state)
        self._first_row += records
        return collected, is_last

    def _running_chunks(
        self, index: int, converter: Converter, engine: Engine | None, lengths: LengthCounts | None
    ) -> Generator[RunningChunk, None, None]:
        """The chunks of a shard to be made; the first call starts the work on all missing shards."""
        if self._running is not None and index not in self._present:
            return self._running
        is_first = self._running is None
        if is_first:
            if self._taken:
                self.say(f"cache: found the first {self._first_row:,} records; continuing after them")
            self._present = frozenset(later for later in shard_indices(self.entry) if later > index)
        # Otherwise the shard was on disk when the work started, but is now damaged or gone: it is made separately.
        missing = MissingShards(
            shard_records=SHARD_RECORDS,
            shard_bytes=SHARD_BYTES,
            first=index,
            first_row=self._first_row,
            present=self._present,
            only_first=not is_first,
        )
        observers = (BatchCollector,) if lengths is None else (LengthCounts, BatchCollector)
        chunks = None if self.records is None else missing(self.pipeline, self.records)
        engine = engine if is_first else None
        running = run_chunks(self.pipeline, Job(converter, observers, missing), engine=engine, chunks=chunks)
        if is_first:
            self._running = running
        return running

    def _is_data_unchanged(self) -> bool:
        """Whether the data are still those of the cache key: a file may change while it is read."""
        stamp = data_stamp(self.pipeline, self.records)
        if stamp == self.stamp:
            return True
        if key_values(self.pipeline, self.records) == self.values:
            self.stamp = stamp
            return True
        self.say("cache: the data, or the day, changed during the run; their samples are not cached")
        return False

    def _close(self) -> None:
        """End an engine's workers."""
        if self._running is not None:
            self._running.close()


def _return_value(generator: Generator[Any, None, T]) -> T:
    """The value that a generator returns; its items are discarded."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return cast("T", end.value)
