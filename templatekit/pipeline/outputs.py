"""Output chunks: the samples of one chunk of records as an exporter writes them, made in any process.

A *converter* turns batches into output chunks. *Observers* see the batches on their way to the converter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from templatekit.config.render_options import RenderOptions
from templatekit.errors import RecordError
from templatekit.hooks.exporters import BaseExporter, Exporter
from templatekit.hooks.registry import Registry
from templatekit.packing import Sequences
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import BATCH_SIZE, SampleBatch
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Sample

ObserverT = TypeVar("ObserverT", bound="Observer")


class OutputChunk(NamedTuple):
    """Samples of one chunk, in the form in which they are written."""

    samples: int
    """Number of samples."""
    content: Any
    """The result of the converter. For an exporter: `Sequences` where they are packed later, the result of
    `Exporter.convert` where the exporter takes columns, else a list of what its `admit` returned.
    """


Converter: TypeAlias = Callable[[Iterable[SampleBatch], Pipeline], Iterator[OutputChunk]]
"""Turns batches into output chunks; one call receives all samples of a record.

Workers receive the converter pickled, so it must be a module's function or a picklable object."""


@dataclass(frozen=True, slots=True)
class ExporterConverter:
    """The converter for an exporter, found by name in the registry of the worker's own pipeline.

    A sample that the exporter refuses is counted, or stops the run.
    """

    name: str

    @classmethod
    def of(cls, exporter: BaseExporter, registry: Registry) -> ExporterConverter:
        """The converter for an exporter of the registry."""
        return cls(next(name for name, offered in registry.exporters.items() if offered is exporter))

    def __call__(self, batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[OutputChunk]:
        """The output chunks of the batches."""
        return chunks_for_exporter(batches, pipeline.registry.exporters[self.name], pipeline)


def keep_batches(batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[OutputChunk]:
    """A converter whose output chunks hold the batches themselves."""
    return (OutputChunk(len(batch), batch) for batch in batches)


def discard_batches(batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[OutputChunk]:
    """A converter without output chunks, for runs that only need observers."""
    for _ in batches:
        pass
    yield from ()


class Observer(Protocol):
    """Sees batches in the process that makes them. The caller gets it from there, pickled, and merges it."""

    def observe(self, batches: Iterable[SampleBatch], pipeline: Pipeline) -> Iterator[SampleBatch]:
        """The batches, unchanged."""

    def merge(self: ObserverT, later: ObserverT) -> None:
        """Add the results of another observer, which has seen the batches after these."""


@dataclass(kw_only=True)
class LengthCounts:
    """An observer that counts samples by their length, and by their number of trained tokens."""

    lengths: Counter[int] = field(default_factory=Counter)
    """Number of samples by length, in `unit`."""
    trained: Counter[int] = field(default_factory=Counter)
    """Number of samples by number of trained tokens; empty without a tokenizer."""
    unit: str = "characters"
    """`tokens`, or without a tokenizer `characters`."""

    def observe(self, batches: Iterable[SampleBatch], pipeline: Pipeline | None = None) -> Iterator[SampleBatch]:
        """The batches, each counted."""
        for batch in batches:
            if batch.columns is not None:
                self.unit = "tokens"
                self.lengths.update(batch.columns.lengths.tolist())
                self.trained.update(batch.columns.trained_tokens.tolist())
            else:
                self.lengths.update(len(item.rendered.text) for item in batch)
            yield batch

    def merge(self, later: LengthCounts) -> None:
        """Add the counts of another observer."""
        if later.lengths:
            self.unit = later.unit
        self.lengths.update(later.lengths)
        self.trained.update(later.trained)


def is_packed(pipeline: Pipeline) -> bool:
    """Whether the options ask to pack the samples of a pipeline."""
    return isinstance(pipeline.options, RenderOptions) and pipeline.options.pack_tokens is not None


def takes_columns(exporter: BaseExporter, pipeline: Pipeline) -> bool:
    """Whether an exporter takes whole columns of a pipeline's samples, rather than sample by sample."""
    return isinstance(exporter, Exporter) and pipeline.encoder is not None


def chunks_for_exporter(
    batches: Iterable[SampleBatch], exporter: BaseExporter, pipeline: Pipeline
) -> Iterator[OutputChunk]:
    """The output chunks for an exporter; afterwards `pipeline.counts` includes the samples that it refused."""
    if is_packed(pipeline):
        for batch in batches:
            columns = batch.columns
            assert columns is not None
            if not exporter.admits_all(columns):
                # An exporter of packs admits tokenized examples unchanged.
                columns = TokenizedColumns.of(list(admit_samples(exporter, batch, pipeline)))
            yield OutputChunk(len(columns), Sequences.of(columns))
    elif takes_columns(exporter, pipeline):
        assert isinstance(exporter, Exporter)
        for batch in batches:
            assert batch.columns is not None
            yield OutputChunk(len(batch), exporter.convert(batch.columns))
    else:
        yield from _admitted(batches, exporter, pipeline)


def _admitted(batches: Iterable[SampleBatch], exporter: BaseExporter, pipeline: Pipeline) -> Iterator[OutputChunk]:
    """The results of `admit_samples`: an output chunk has those of one batch, or of several until it is as long."""
    items: list[Any] = []
    is_batch_over = False

    def samples() -> Iterator[Sample]:
        nonlocal is_batch_over
        for batch in batches:
            yield from batch
            is_batch_over = True

    try:
        for item in admit_samples(exporter, samples(), pipeline):
            items.append(item)
            if is_batch_over or len(items) == BATCH_SIZE:
                yield OutputChunk(len(items), items)
                items, is_batch_over = [], False
    except Exception:  # raised after the samples before it
        if items:
            yield OutputChunk(len(items), items)
        raise
    if items:
        yield OutputChunk(len(items), items)


def admit_samples(exporter: BaseExporter, samples: Iterable[Sample], pipeline: Pipeline) -> Iterator[Any]:
    """The results of the exporter's `admit`, by sample; a refused sample stops the run, or is counted."""
    errors: list[Exception] = []

    def before_error() -> Iterator[Sample]:
        try:
            yield from samples
        except Exception as error:  # raised after the record before it is finished
            errors.append(error)

    for record in _group_by_record(before_error()):
        if exporter.whole_records:
            record = [s for s, continued in zip(record, continued_in_next(record), strict=True) if not continued]
        refused: list[RecordError] = []
        for sample in record:
            try:
                item = exporter.admit(sample)
            except RecordError as error:
                refused.append(error.at(sample.rendered.source or pipeline.options.dataset, sample.rendered.row))
                if pipeline.options.on_error == "stop":
                    error.message += "; to skip: --on-error skip"
                    raise
            else:
                yield item
        for index, refusal in enumerate(refused):
            whole_row = index == 0 and len(refused) == len(record)
            pipeline.counts_of(record[0]).retract(refusal, whole_row=whole_row)
    if errors:
        raise errors[0]


def _group_by_record(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """The samples of each record together."""
    group: list[Sample] = []
    for sample in samples:
        if group and not _of_one_record(group[-1], sample):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def continued_in_next(samples: Sequence[Sample]) -> list[bool]:
    """For each sample, whether the next one is of the same record and starts with all messages of this one."""
    return [
        following is not None
        and _of_one_record(sample, following)
        and following.example.messages[: len(sample.example.messages)] == sample.example.messages
        for sample, following in zip_longest(samples, samples[1:])
    ]


def _of_one_record(sample: Sample, following: Sample) -> bool:
    """Whether two consecutive samples are of one record.

    A mixture may repeat a row directly after itself; the numbering of its samples then starts again.
    """
    one, other = sample.rendered, following.rendered
    return (one.source, one.row) == (other.source, other.row) and one.sample < other.sample
