"""Goes through the parts of a data set: those that are on the disk are taken from there, the others are made.

A part holds a fixed number of records, so what the source has to be read on to is known of each; what the pipeline
remembers from earlier records (groups, repeats, an order) lies in the reading of the source, which begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

from templatekit.cache.disk import Damaged
from templatekit.cache.examples import InMemory, StoredSamples
from templatekit.cache.folder import begin, part_folder, remove_part
from templatekit.cache.key import NotCached, key_of, parts_of, stamp_of
from templatekit.cache.part import Part
from templatekit.cache.values import NotPlain
from templatekit.cache.writer import PartWriter
from templatekit.counts import Counts
from templatekit.errors import RecordError
from templatekit.pipeline import Pipeline
from templatekit.places import cache_folder
from templatekit.prepared import Batch, Prepared
from templatekit.types import Record

PART_RECORDS = 8192
"""Records of a part: what a stop may cost, and what is in memory while it is made."""
T = TypeVar("T")
Say = Callable[[str], None]
Open = Callable[[], Iterator[Record | RecordError]]


def prepared_batches(
    pipeline: Pipeline,
    *,
    read: Open | None = None,
    given: Iterable[Any] | None = None,
    say: Say = lambda line: None,
) -> Iterator[Batch]:
    """What `pipeline.batches` gives for the options' data set, kept on disk where the option `cache` says so.

    `pipeline.counts` tells the same in the end, whether parts were taken or made. A caller's own records are `given`,
    and come from `read()`. `say` receives a line where something is taken, damaged, or not kept. Raises `RunError`
    where the disk takes no more.
    """
    way = _way(pipeline, read or pipeline.open, given, say)
    if way is not None:
        return way.batches()
    return pipeline.prepared_batches() if read is None else pipeline.batches(read())


def prepared_samples(pipeline: Pipeline, *, say: Say = lambda line: None) -> Sequence[Prepared]:
    """All samples of the options' data set: with the option `cache` memory-mapped, else in memory.

    Tokens lie in columns, but for pairs and mixtures.
    """
    way = _way(pipeline, pipeline.open, None, say)
    if way is not None:
        stored = way.stored()
        if stored is not None:
            return StoredSamples(stored)
        pipeline.counts = Counts()
    batches = list(prepared_batches(pipeline))
    if type(pipeline) is Pipeline:
        held = [InMemory(batch, batch.columns) for batch in batches if batch.columns is not None]
        if len(held) == len(batches):
            return StoredSamples(held)
    return [item for batch in batches for item in batch]


def _way(pipeline: Pipeline, read: Open, given: Iterable[Any] | None, say: Say) -> _Preparation | None:
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
    return _Preparation(pipeline=pipeline, folder=folder, read=read, given=given, parts=parts, stamp=stamp, say=say)


@dataclass(kw_only=True)
class _Preparation:
    """One way through the parts."""

    pipeline: Pipeline
    folder: Path
    read: Open
    parts: dict[str, Any]
    stamp: tuple[Any, ...]
    given: Iterable[Any] | None
    say: Say
    _records: Iterator[Record | RecordError] | None = None
    _read_to: int = 0
    _taken: int = 0

    def batches(self) -> Iterator[Batch]:
        """All batches, part by part."""
        for number in count():
            part = self._stored(number)
            if part is not None:
                self._take(part)
                yield from part.batches()
                found = part.state.records
            else:
                found = yield from self._make(number)
            if found < PART_RECORDS:
                break
        self.pipeline.check_any_left()

    def stored(self) -> list[Part] | None:
        """All parts, those that are missing made first; None where one cannot be kept."""
        found: list[Part] = []
        for number in count():
            part = self._stored(number, texts=False)
            if part is not None:
                self._take(part)
            else:
                for _ in self._make(number):
                    pass
                part = self._stored(number, texts=False)
            if part is None:
                return None
            found.append(part)
            if part.state.records < PART_RECORDS:
                break
        self.pipeline.check_any_left()
        return found

    def _stored(self, number: int, *, texts: bool = True) -> Part | None:
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
        self.pipeline.counts.merge(part.state.counts)

    def _make(self, number: int) -> Generator[Batch, None, int]:
        """The batches of a part, which is on the disk when the last is out; returns the number of its records."""
        first = number * PART_RECORDS
        if self._taken and self._records is None:
            self.say(f"cache: {first:,} records were there; going on behind them")
        source = self.pipeline.options.dataset if self.given is None else None
        records = _Counted(islice(self._at(first), PART_RECORDS))
        made = Counts()
        batches = self.pipeline.some_batches(records, source=source, first_row=first)
        writer: PartWriter | None = PartWriter()
        while (batch := self._counted(batches, made)) is not None:
            writer = self._added(writer, batch)
            yield batch
        self._read_to += records.count
        if writer is not None and self._still_the_same():
            adapter = self.pipeline.adapter.name if self.pipeline.adapter else None
            writer.finish(part_folder(self.folder, number), records=records.count, counts=made, adapter=adapter)
        return records.count

    def _counted(self, batches: Iterator[Batch], made: Counts) -> Batch | None:
        """The next batch; what is counted for it is added to `made`, without what others count meanwhile."""
        whole, self.pipeline.counts = self.pipeline.counts, Counts()
        try:
            return next(batches, None)
        finally:
            new, self.pipeline.counts = self.pipeline.counts, whole
            whole.merge(new)
            made.merge(new)

    def _added(self, writer: PartWriter | None, batch: Batch) -> PartWriter | None:
        if writer is None:
            return None
        try:
            writer.add(batch)
        except NotPlain as error:
            self.say(f"cache: records {self._read_to:,} and on are not kept: one holds {error}")
            return None
        return writer

    def _at(self, first: int) -> Iterator[Record | RecordError]:
        """The source, read on to a record."""
        if self._records is None:
            self._records = self.read()
        for _ in islice(self._records, first - self._read_to):
            pass
        self._read_to = first
        return self._records

    def _still_the_same(self) -> bool:
        """Whether the data are still those that the key names: a file may be changed while it is read."""
        stamp = stamp_of(self.pipeline, self.given)
        if stamp == self.stamp:
            return True
        if parts_of(self.pipeline, self.given) == self.parts:
            self.stamp = stamp
            return True
        self.say("cache: the data, or the day, changed meanwhile; what came of them is not kept")
        return False


@dataclass
class _Counted(Iterator[T]):
    """An iterator that counts."""

    items: Iterator[T]
    count: int = field(default=0)

    def __next__(self) -> T:
        item = next(self.items)
        self.count += 1
        return item
