"""Prepared samples on their way to a sink: in parts, each as the sink writes it, which can be made in any process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from templatekit.config.options import RenderOptions
from templatekit.errors import RecordError
from templatekit.hooks.exporters import Exporter, Sink, whole_records
from templatekit.hooks.registry import Registry
from templatekit.packing import Sequences
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import BATCH, SampleBatch
from templatekit.pipeline.chunks import UpToError, chunked
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Sample

W = TypeVar("W", bound="Watcher")


class Part(NamedTuple):
    """Some samples as a sink writes them."""

    samples: int
    content: Any
    """Of a sink: what is to be packed their `Sequences`; what goes `in_columns` as `Exporter.convert` made it; else a
    list of what the sink admitted."""


Make: TypeAlias = Callable[[Iterable[SampleBatch], Pipeline], Iterator[Part]]
"""What becomes of samples that are not all, but whole records': where none of them is left it is no error.

It is sent to other processes: a function of a module, or a value."""


@dataclass(frozen=True, slots=True)
class ForSink:
    """Makes what a sink of the pipeline's registry writes. What it has no place for is counted, or stops the run."""

    name: str

    @classmethod
    def of(cls, sink: Sink, registry: Registry) -> ForSink:
        """By the name under which the registry has the sink."""
        return cls(next(name for name, offered in registry.exporters.items() if offered is sink))

    def __call__(self, batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[Part]:
        """As `Make` says."""
        return some_parts(batches, pipeline.registry.exporters[self.name], pipeline)


def as_they_are(batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[Part]:
    """A `Make`: the batches themselves."""
    return (Part(len(batch), batch) for batch in batches)


def nothing(batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[Part]:
    """A `Make`: no parts, for whom it is enough to watch the batches."""
    for _ in batches:
        pass
    yield from ()


class Watcher(Protocol):
    """Looks at batches as they pass, in the process that makes them, and is sent from there."""

    def watch(self, batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[SampleBatch]:
        """The batches as they are."""

    def merge(self: W, later: W) -> None:
        """Adds what another has seen of batches that follow these."""


def watched(batches: Iterator[SampleBatch], watchers: Iterable[Watcher], pipeline: Pipeline) -> Iterator[SampleBatch]:
    """The batches, seen by all watchers."""
    for watcher in watchers:
        batches = watcher.watch(batches, pipeline)
    return batches


@dataclass(kw_only=True)
class Lengths:
    """How many samples have which length, in tokens or else in characters, and which number of trained tokens."""

    lengths: Counter[int] = field(default_factory=Counter)
    trained: Counter[int] = field(default_factory=Counter)
    unit: str = "characters"

    def add(self, batch: SampleBatch) -> None:
        """Counts each sample of a batch."""
        if batch.columns is not None:
            self.unit = "tokens"
            self.lengths.update(batch.columns.lengths.tolist())
            self.trained.update(batch.columns.trained_tokens.tolist())
        else:
            self.lengths.update(len(item.rendered.text) for item in batch)

    def watch(self, batches: Iterable[SampleBatch], pipeline: Pipeline | None = None) -> Iterator[SampleBatch]:
        """The batches, each counted."""
        for batch in batches:
            self.add(batch)
            yield batch

    def merge(self, later: Lengths) -> None:
        """Adds what was counted elsewhere."""
        if later.lengths:
            self.unit = later.unit
        self.lengths.update(later.lengths)
        self.trained.update(later.trained)


def in_packs(pipeline: Pipeline) -> bool:
    """Whether what comes out of a pipeline is to be packed, as the options say."""
    return isinstance(pipeline.options, RenderOptions) and pipeline.options.pack_tokens is not None


def in_columns(sink: Sink, pipeline: Pipeline) -> bool:
    """Whether a sink takes whole columns of what comes out of a pipeline, or looks at single samples."""
    return isinstance(sink, Exporter) and pipeline.encoder is not None


def some_parts(batches: Iterable[SampleBatch], sink: Sink, pipeline: Pipeline) -> Iterator[Part]:
    """What a sink writes of samples that come out of the pipeline, which counts those that it has no place for."""
    if in_packs(pipeline):
        for columns in admitted_columns(sink, batches, pipeline):
            yield Part(len(columns), Sequences.of(columns))
    elif in_columns(sink, pipeline):
        assert isinstance(sink, Exporter)
        for batch in batches:
            assert batch.columns is not None
            yield Part(len(batch), sink.convert(batch.columns))
    else:
        for items, error in chunked(admitted(sink, chain.from_iterable(batches), pipeline), BATCH):
            yield Part(len(items), items)
            if error is not None:
                raise error


def admitted(sink: Sink, samples: Iterable[Sample], pipeline: Pipeline) -> Iterator[Any]:
    """What the sink writes of the samples; one that it has no place for stops the run, or is counted."""
    given = UpToError(samples)
    wanted = cast("Iterable[Sample]", whole_records(given)) if sink.whole_records else given
    for record in _by_record(wanted):
        refused: list[RecordError] = []
        for sample in record:
            try:
                item = sink.admit(sample)
            except RecordError as error:
                refused.append(error.at(sample.rendered.source or pipeline.options.dataset, sample.rendered.row))
                if pipeline.options.on_error == "stop":
                    error.message += "; to skip: --on-error skip"
                    raise
            else:
                yield item
        for number, one in enumerate(refused):
            pipeline.counts_of(record[0]).take_back(one, row=number == 0 and len(refused) == len(record))
    if given.error is not None:
        raise given.error


def admitted_columns(sink: Sink, batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[TokenizedColumns]:
    """The same in columns, of sinks that write the tokenized examples themselves."""
    for batch in batches:
        assert batch.columns is not None
        if sink.admits_all(batch.columns):
            yield batch.columns
        else:
            yield TokenizedColumns.of(list(admitted(sink, batch, pipeline)))


def _by_record(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Each record's samples together. A mixture may hold a row twice in a row, whose samples are then numbered anew."""
    held: list[Sample] = []
    for sample in samples:
        rendered = sample.rendered
        if held:
            last = held[-1].rendered
            if (rendered.source, rendered.row) != (last.source, last.row) or rendered.sample <= last.sample:
                yield held
                held = []
        held.append(sample)
    if held:
        yield held
