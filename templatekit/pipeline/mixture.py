"""`Mixture`: several data sets in one run, each with its own adapter and, where it names one, its own template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain, islice
from typing import Any, ClassVar

from templatekit.config.data_options import DataOptions, MixedSet
from templatekit.errors import ConfigError, RecordError
from templatekit.formats.template import Template
from templatekit.hooks.registry import Registry
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import BATCH_SIZE, SampleBatch
from templatekit.pipeline.chunks import Chunk
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources.chunked import chunked
from templatekit.sources.limits import told_size
from templatekit.sources.mixing import DrawnItem, Mix, Passes, Strategy
from templatekit.sources.shuffle import row_of, shuffled, with_row
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example, Record, Sample

_CHUNK_SIZE = 1024
"""Records of a chunk. They are divided by set, so chunks are larger than those of one set."""
_MAX_ROWS = 1 << 40
"""More rows than a set has: a record's id is `set * _MAX_ROWS + row`."""


@dataclass(kw_only=True)
class MixedCounts(Counts):
    """The counts of each set, and their sums."""

    sets: dict[str, Counts] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """How often mixing read the rows of a set, in words, by the set's name."""

    def sum_sets(self) -> None:
        """Sum the counts of the sets. Row numbers stay with their sets."""
        for field_ in fields(Counts):
            values = [getattr(counts, field_.name) for counts in self.sets.values()]
            if isinstance(getattr(self, field_.name), int):
                setattr(self, field_.name, sum(values))
            elif isinstance(getattr(self, field_.name), Counter):
                setattr(self, field_.name, sum(values, Counter()))

    def merge(self, later: Counts) -> None:
        """Add the counts of the records that follow these, set by set."""
        assert isinstance(later, MixedCounts)
        for name, counts in later.sets.items():
            self.sets[name].merge(counts)
        self.notes.update(later.notes)
        self.sum_sets()

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON holds them, with each set's own under `sets`."""
        self.sum_sets()
        sets = {
            name: counts.as_dict() | ({"note": self.notes[name]} if name in self.notes else {})
            for name, counts in self.sets.items()
        }
        return {**super().as_dict(), "sets": sets}

    def lines(self, *, tokens: bool) -> list[str]:
        """The sums, then the counts of each set after its name."""
        self.sum_sets()
        lines = [self.headline(tokens=tokens)]
        for name, counts in self.sets.items():
            own = counts.lines(tokens=tokens)
            share = f" ({counts.rows_out / self.rows_out:.1%} of the rows)" if self.rows_out else ""
            lines += [f"{name}: {own[0]}{share}", *(f"  {line}" for line in own[1:])]
            if name in self.notes:
                lines.append(f"  note: {self.notes[name]}")
        return lines


class Mixture(Pipeline):
    """Several data sets in one run: a pipeline of `pipeline_type` for each, which share a tokenizer."""

    reads_mix: ClassVar[bool] = True

    def __init__(
        self,
        options: DataOptions,
        registry: Registry,
        *,
        pipeline_type: type[Pipeline] = Pipeline,
        template: Template | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__(options, registry, template=template, tokenizer=tokenizer)
        self.pipeline_type = pipeline_type
        self.names = _names(options.mix)
        self.pipelines = [self._pipeline(mixed) for mixed in options.mix]
        self.counts: MixedCounts = self._new_counts()

    @property
    def has_one_template(self) -> bool:
        """Whether every set is rendered by the mixture's own template."""
        return all(pipeline.template.source == self.template.source for pipeline in self.pipelines)

    def _pipeline(self, mixed: MixedSet) -> Pipeline:
        """The pipeline of a set: the set's own options replace those of the mixture, its filters are added."""
        own = {name: value for name in mixed.model_fields_set if (value := getattr(mixed, name)) is not None}
        update = {name: own[name] for name in DataOptions.model_fields if name in own and name != "filter"}
        shared = not {"template", "chat_template_kwargs"} & update.keys()
        options = self.options.model_copy(
            update={
                "limit": None,
                **({"chat_template_kwargs": {}, "end_marker": None} if shared else {}),  # the template has them
                **update,
                "filter": (*self.options.filter, *mixed.filter),
                "mix": (),
                "dedup": None,
                "shuffle": None,
            }
        )
        return self.pipeline_type(
            options, self.registry, template=self.template if shared else None, tokenizer=self.tokenizer
        )

    def open(self, records: Iterable[Any] | None = None) -> Iterator[Record | RecordError]:
        """Raises `ConfigError`: the records of several sets have no common shape; see `chunks`."""
        raise ConfigError("a mixture is read through batches(): its sets have adapters of their own")

    def batches(
        self, records: Iterable[Record | RecordError] | None = None, *, source: str | None = None, first_row: int = 0
    ) -> Iterator[SampleBatch]:
        """The samples of every set, in the order in which their records are drawn."""
        if records is not None:
            raise ConfigError("a mixture reads the sets that its options name; found records")
        return self._checked(chain.from_iterable(map(self.process_chunk, self.chunks())))

    def chunks(self) -> Iterator[Chunk]:
        """The records of every set in chunks, in the order in which they are drawn."""
        sets = self.options.mix
        default: Strategy = "all_exhausted" if any(mixed.weight is not None for mixed in sets) else "concat"
        mix = Mix(
            openers=[partial(self._read_set, index) for index in range(len(sets))],
            weights=[mixed.weight or 1.0 for mixed in sets],
            strategy=self.options.mix_strategy or default,
            seed=self.options.shuffle or 0,
        )
        drawn = self._deduplicated_and_shuffled(islice(mix, self.options.limit))
        for records, error in chunked(drawn, _CHUNK_SIZE, lambda one: told_size(one.item)):
            yield Chunk(records=records, adapters=self._adapter_names(), error=error)
        yield Chunk(records=[], adapters=self._adapter_names(), notes=self._notes(mix.passes))

    def _read_set(self, index: int) -> Iterator[Record | RecordError]:
        for _ in range(self.options.mix[index].repeat):
            for row, record in enumerate(self.pipelines[index].open()):
                yield with_row(record, row)

    def _deduplicated_and_shuffled(
        self, drawn: Iterable[DrawnItem[Record | RecordError]]
    ) -> Iterable[DrawnItem[Record | RecordError]]:
        """The records as the options `dedup` and `shuffle` say, over all sets together."""
        if self.options.dedup is not None:
            from templatekit.pipeline.deduplication import IdentifiedRecord, create_text_index, mark_duplicates

            records = (IdentifiedRecord(record, index * _MAX_ROWS + _row(record)) for index, record in drawn)

            def read(id: int, record: Record) -> list[Example]:
                return self.pipelines[id // _MAX_ROWS].reader.examples(record)

            def name(id: int) -> str:
                return f"{id % _MAX_ROWS} of {self.names[id // _MAX_ROWS]}"

            marked = mark_duplicates(records, create_text_index(self.options.dedup), read, name)
            drawn = (
                DrawnItem(
                    id // _MAX_ROWS, record.at(None, id % _MAX_ROWS) if isinstance(record, RecordError) else record
                )
                for record, id in marked
            )
        if self.options.shuffle is None:
            return drawn
        return shuffled(
            drawn,
            seed=self.options.shuffle,
            buffer=self.options.shuffle_buffer,
            bytes_of=lambda one: told_size(one.item),
        )

    def process_chunk(self, chunk: Chunk) -> Iterator[SampleBatch]:
        """The samples of a chunk's records, in the order of the records; raises the chunk's error after them."""
        self.take_adapters(chunk.adapters)
        samples = self._samples_of(chunk.records)
        while found := list(islice(samples, BATCH_SIZE)):
            tokenized = [sample.tokenized for sample in found if sample.tokenized is not None]
            yield SampleBatch(items=found, columns=TokenizedColumns.of(tokenized) if tokenized else None)
        self.counts.notes.update(chunk.notes)
        self.counts.sum_sets()
        if chunk.error is not None:
            raise chunk.error

    def _samples_of(self, chunk: list[DrawnItem[Record | RecordError]]) -> Iterator[Sample]:
        """The samples of records: each set's are made by its own pipeline, then put into the order of the records."""
        made: dict[int, list[Sample]] = {}
        for index in dict.fromkeys(drawn.set_index for drawn in chunk):
            pipeline = self.pipelines[index]
            made[index] = []
            for records in _split_at_repeats(drawn.item for drawn in chunk if drawn.set_index == index):
                for batch in pipeline.process(records, source=pipeline.options.dataset):
                    made[index] += (_with_source(sample, self.names[index]) for sample in batch)
            made[index].reverse()
        for index, record in chunk:
            row, last = row_of(record, -1), -1
            samples = made[index]
            while samples and samples[-1].rendered.row == row and samples[-1].rendered.sample > last:
                last = samples[-1].rendered.sample
                yield samples.pop()

    def take_adapters(self, names: Sequence[str | None]) -> None:
        """Use for each set the adapter that its records in another process have shown."""
        for pipeline, name in zip(self.pipelines, names, strict=True):
            pipeline.take_adapters([name])

    def _adapter_names(self) -> tuple[str | None, ...]:
        return tuple(pipeline.reader.adapter_name for pipeline in self.pipelines)

    def take_counts(self) -> Counts:
        """Return the counts so far, and start with new ones."""
        counts = self.counts
        for pipeline in self.pipelines:
            pipeline.take_counts()
        self.counts = self._new_counts()
        return counts

    def _new_counts(self) -> MixedCounts:
        return MixedCounts(
            sets={name: pipeline.counts for name, pipeline in zip(self.names, self.pipelines, strict=True)}
        )

    def counts_of(self, sample: Sample) -> Counts:
        """The counts of the sample's set."""
        return self.counts.sets[sample.rendered.source]

    def check_any_left(self) -> None:
        """Raise `ConfigError` where records of a set came in and no sample of it came out."""
        for name, pipeline in zip(self.names, self.pipelines, strict=True):
            try:
                pipeline.check_any_left()
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error

    def _notes(self, passes: Iterable[Passes]) -> dict[str, str]:
        """For each set with news: how often its rows were read, and which adapter was inferred."""
        notes = {}
        for name, pipeline, mixed, own in zip(self.names, self.pipelines, self.options.mix, passes, strict=True):
            adapter = pipeline.adapter
            told = f"adapter {adapter.name}, inferred from the records' keys" if adapter and not mixed.adapter else ""
            if note := "; ".join(filter(None, (_note(own), told))):
                notes[name] = note
        return notes


def create_pipeline(
    options: DataOptions,
    registry: Registry,
    *,
    pipeline_type: type[Pipeline] = Pipeline,
    template: Template | None = None,
    tokenizer: Tokenizer | None = None,
) -> Pipeline:
    """A `pipeline_type` for the options' data set, or a `Mixture` of several if the options name several sets."""
    if options.mix:
        return Mixture(options, registry, pipeline_type=pipeline_type, template=template, tokenizer=tokenizer)
    return pipeline_type(options, registry, template=template, tokenizer=tokenizer)


def _with_source(sample: Sample, name: str) -> Sample:
    rendered = replace(sample.rendered, source=name)
    tokenized = sample.tokenized and replace(sample.tokenized, rendered=rendered)
    return replace(sample, rendered=rendered, tokenized=tokenized)


def _split_at_repeats(records: Iterable[Record | RecordError]) -> Iterator[list[Record | RecordError]]:
    """The records, split where a record directly repeats, so that two records' samples stay separate."""
    run: list[Record | RecordError] = []
    for record in records:
        if run and not isinstance(record, RecordError) and row_of(run[-1], -1) == row_of(record, -2):
            yield run
            run = []
        run.append(record)
    yield run


def _row(record: Record | RecordError) -> int:
    return (record.row or 0) if isinstance(record, RecordError) else row_of(record, 0)


def _names(sets: Iterable[MixedSet]) -> list[str]:
    names = [mixed.name or mixed.dataset for mixed in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"mix: two sets are named {twice!r}; give one of them a name of its own: name=…")
    return names


def _note(passes: Passes) -> str:
    if passes.unfinished:
        return f"only its first {passes.partial:,} rows were drawn; the others were not read"
    if passes.complete > 1 or (passes.complete and passes.partial):
        more = f" and {passes.partial:,} rows of another pass" if passes.partial else ""
        times = "once" if passes.complete == 1 else f"{passes.complete} times"
        return f"gone through {times}{more}"
    return ""
