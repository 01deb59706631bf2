"""Goes through the parts of a data set: those that are on the disk are taken from there, the others are made.

A part holds a fixed number of records, so what the source has to be read on to is known of each; what the pipeline
remembers from earlier records (groups, repeats, an order) lies in the reading of the source, which begins anew.

The first part that is missing begins the work, in this process or by an engine's workers. It goes on to the end of the
source, past the parts that were there by then. What comes of it, chunk by chunk in order, is laid end to end here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

from templatekit.cache.atomic_files import Damaged
from templatekit.cache.folder import begin, part_folder, part_numbers, remove_part
from templatekit.cache.key import NotCached, key_of, parts_of, stamp_of
from templatekit.cache.missing import Missing
from templatekit.cache.reader import InTables
from templatekit.cache.sequences import Columns, InMemory, StoredSamples
from templatekit.cache.shard import Part
from templatekit.cache.tables import Tables, tokens_of
from templatekit.cache.writer import Kept, write_part
from templatekit.config.folders import cache_folder
from templatekit.engines.jobs import Begun, Engine, Work, worked
from templatekit.engines.jobs import parts_of as made_of
from templatekit.errors import RecordError
from templatekit.pipeline.batches import SampleBatch
from templatekit.pipeline.mixture import Mixture
from templatekit.pipeline.outputs import Lengths, Make, as_they_are, nothing
from templatekit.pipeline.outputs import Part as Made
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Record, Sample

PART_RECORDS = 8192
"""Records of a part: what a stop may cost, and what is in memory while it is made."""
T = TypeVar("T")
Say = Callable[[str], None]
Open = Callable[[], Iterator[Record | RecordError]]


def prepared_parts(
    pipeline: Pipeline,
    make: Make,
    *,
    engine: Engine | None = None,
    lengths: Lengths | None = None,
    read: Open | None = None,
    given: Iterable[Any] | None = None,
    say: Say = lambda line: None,
) -> Iterator[Made]:
    """What `make` makes of the options' data set, whose examples are kept on disk where the option `cache` says so.

    `pipeline.counts` tells the same in the end, whether they were taken or made, here or by an engine's workers. A
    caller's own records are `given`, and come from `read()`. `say` receives a line where something is taken, damaged,
    or not kept. Raises `RunError` where the disk takes no more.
    """
    way = _way(pipeline, read, given, say)
    if way is not None:
        return way.parts(make, engine, lengths)
    chunks = None if read is None else pipeline.chunks_of(read(), given=True)
    return made_of(pipeline, make, engine=engine, chunks=chunks, lengths=lengths)


def prepared_batches(
    pipeline: Pipeline,
    *,
    read: Open | None = None,
    given: Iterable[Any] | None = None,
    say: Say = lambda line: None,
) -> Iterator[SampleBatch]:
    """The same, the batches themselves: what `pipeline.batches` gives."""
    way = _way(pipeline, read, given, say)
    if way is not None:
        return (part.content for part in way.parts(as_they_are, None, None))
    return pipeline.prepared_batches() if read is None else pipeline.batches(read())


def prepared_samples(
    pipeline: Pipeline, *, engine: Engine | None = None, say: Say = lambda line: None
) -> Sequence[Sample]:
    """All samples of the options' data set: with the option `cache` memory-mapped, else in memory.

    Tokens lie in columns, but for mixtures, and for pairs that are made in this process.
    """
    way = _way(pipeline, None, None, say)
    if way is not None:
        return StoredSamples(way.stored(engine))
    if engine is None:
        batches: Sequence[Tables | SampleBatch] = list(pipeline.prepared_batches())
        in_columns = type(pipeline) is Pipeline and pipeline.tokenizer is not None
    else:
        batches = _kept_by(engine, pipeline).batches
        in_columns = not isinstance(pipeline, Mixture)
    if in_columns:
        return StoredSamples([_in_memory(batch) for batch in batches])
    return [item for batch in cast("list[SampleBatch]", batches) for item in batch]


def _kept_by(engine: Engine, pipeline: Pipeline) -> Kept:
    """All that workers make, sent as tables: samples one by one would take as long to send as to make."""
    kept = Kept()
    with closing(worked(pipeline, Work(nothing, (Kept,)), engine=engine)) as chunks:
        for begun in chunks:
            for _ in begun.parts:  # none, and the error behind them
                pass
            for watcher in begun.watchers:
                kept.merge(cast("Kept", watcher))
    pipeline.check_any_left()
    return kept


def _in_memory(batch: Tables | SampleBatch) -> Columns:
    return InTables(batch, len(batch)) if isinstance(batch, Tables) else InMemory(batch, tokens_of(batch))


def _way(pipeline: Pipeline, read: Open | None, given: Iterable[Any] | None, say: Say) -> _Preparation | None:
    """The way through the parts; None where nothing is to be kept, or can be."""
    if not pipeline.options.cache:
        return None
    try:
        parts = parts_of(pipeline, given)
    except NotCached as error:
        say(f"cache: not used: {error}")
        return None
    folder = begin(cache_folder(pipeline.options.cache_dir), key_of(parts), parts, pipeline)
    stamp = stamp_of(pipeline, given)
    return _Preparation(pipeline=pipeline, folder=folder, read=read, given=given, key=parts, stamp=stamp, say=say)


@dataclass(kw_only=True)
class _Preparation:
    """One way through the parts."""

    pipeline: Pipeline
    folder: Path
    read: Open | None
    key: dict[str, Any]
    stamp: tuple[Any, ...]
    given: Iterable[Any] | None
    say: Say
    _work: Generator[Begun, None, None] | None = None
    """Begun by the first part that is missing."""
    _there: frozenset[int] = frozenset()
    """Parts behind that one that were there by then."""
    _taken: int = 0

    def __post_init__(self) -> None:
        # What is read ahead of a part may tell one for later ones.
        self._adapter = self.pipeline.reader.adapter_name

    def parts(self, make: Make, engine: Engine | None, lengths: Lengths | None) -> Iterator[Made]:
        """What is made of the batches of all parts."""
        try:
            for number in count():
                part = self._stored(number)
                if part is None:
                    _, records = yield from self._make(number, make, engine, lengths)
                else:
                    self._take(part)
                    batches = part.batches()
                    yield from make(batches if lengths is None else lengths.watch(batches), self.pipeline)
                    records = part.state.records
                if records < PART_RECORDS:
                    break
        finally:
            self._close()
        self.pipeline.check_any_left()

    def stored(self, engine: Engine | None) -> list[Columns]:
        """All parts, those that are missing made first; of one that cannot be kept what is in memory."""
        found: list[Columns] = []
        try:
            for number in count():
                part = self._stored(number, texts=False)
                if part is not None:
                    self._take(part)
                    found.append(part)
                    records = part.state.records
                else:
                    kept, records = _all_of(self._make(number, nothing, engine, None))
                    made = self._opened(number, texts=False)
                    found += [made] if made is not None else map(_in_memory, kept.batches)
                if records < PART_RECORDS:
                    break
        finally:
            self._close()
        self.pipeline.check_any_left()
        return found

    def _stored(self, number: int, *, texts: bool = True) -> Part | None:
        """A part that is there; none that is being made."""
        if self._work is not None and number not in self._there:
            return None
        return self._opened(number, texts=texts)

    def _opened(self, number: int, *, texts: bool) -> Part | None:
        """A part that is there, its files checked; one that is damaged is told of, removed, and made anew."""
        folder = part_folder(self.folder, number)
        if not folder.exists():
            return None
        try:
            part = Part(folder)
            part.check(texts=texts)
        except Damaged as error:
            self.say(f"cache: a part is damaged and made anew: {error}")
            remove_part(folder)
            return None
        return part

    def _take(self, part: Part) -> None:
        if not self._taken:
            self.say(f"cache: examples are taken from {str(self.folder)!r}")
        self._taken += 1
        adapter = part.state.adapter
        if self.pipeline.adapter is None:
            self.pipeline.take_adapters((adapter,))
        self._adapter = adapter or self._adapter
        self.pipeline.counts.merge(part.state.counts)

    def _make(
        self, number: int, make: Make, engine: Engine | None, lengths: Lengths | None
    ) -> Generator[Made, None, tuple[Kept, int]]:
        """What is made of a part, which is on the disk behind the last of it; returns the number of its records."""
        kept, records = Kept(), 0
        work = self._work_on(number, make, engine, lengths)
        while records < PART_RECORDS and (begun := next(work, None)) is not None:
            yield from begun.parts
            *others, own = begun.watchers
            for watcher in others:
                assert lengths is not None
                lengths.merge(cast("Lengths", watcher))
            if not kept.why and (why := cast("Kept", own).why):
                first = number * PART_RECORDS
                self.say(f"cache: records {first:,} and on are not kept: one holds {why}")
            kept.merge(cast("Kept", own))
            records += begun.records
            if (told := begun.adapters[0]) is not None:
                self._adapter = told
        if not kept.why and self._still_the_same():
            tables = cast("list[Tables]", kept.batches)
            folder = part_folder(self.folder, number)
            write_part(folder, tables, records=records, counts=kept.counts, adapter=self._adapter)
        return kept, records

    def _work_on(
        self, number: int, make: Make, engine: Engine | None, lengths: Lengths | None
    ) -> Generator[Begun, None, None]:
        """What gives a part's chunks; the first time all that are missing."""
        if self._work is not None and number not in self._there:
            return self._work
        first = self._work is None
        if first:
            if self._taken:
                self.say(f"cache: {number * PART_RECORDS:,} records were there; going on behind them")
            self._there = frozenset(other for other in part_numbers(self.folder) if other > number)
        # One that was there and is damaged, or gone, is made alone.
        missing = Missing(size=PART_RECORDS, first=number, there=self._there, alone=not first)
        watchers = (Kept,) if lengths is None else (Lengths, Kept)
        chunks = None if self.read is None else missing.of(self.pipeline, self.read(), given=True)
        engine = engine if first else None
        begun = worked(self.pipeline, Work(make, watchers, missing), engine=engine, chunks=chunks)
        if first:
            self._work = begun
        return begun

    def _still_the_same(self) -> bool:
        """Whether the data are still those that the key names: a file may be changed while it is read."""
        stamp = stamp_of(self.pipeline, self.given)
        if stamp == self.stamp:
            return True
        if parts_of(self.pipeline, self.given) == self.key:
            self.stamp = stamp
            return True
        self.say("cache: the data, or the day, changed meanwhile; what came of them is not kept")
        return False

    def _close(self) -> None:
        """Ends an engine's workers."""
        if self._work is not None:
            self._work.close()


def _all_of(steps: Generator[Any, None, T]) -> T:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast("T", end.value)
