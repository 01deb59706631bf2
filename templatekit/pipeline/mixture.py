"""Several sets in one run, each read by its own adapter and rendered by its own template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, ClassVar

from templatekit.config.options import DataOptions, MixedSet
from templatekit.errors import ConfigError, RecordError
from templatekit.formats.template import Template
from templatekit.hooks.registry import Registry
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import BATCH, SampleBatch
from templatekit.pipeline.chunks import Chunk, chunked
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.pipeline import Pipeline
from templatekit.sources.mixing import Drawn, Mix, Passes, Strategy
from templatekit.sources.shuffle import placed, row_of, shuffled
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Example, Record, Sample

_CHUNK = 1024
"""Records that are parted by their sets and brought together again at a time."""
_PLACES = 1 << 40
"""More than a set has rows: a place is `set * _PLACES + row`."""


@dataclass(kw_only=True)
class MixedCounts(Counts):
    """The sums over all sets, and what became of each."""

    sets: dict[str, Counts] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """What mixing did with a set's rows."""

    def add_up(self) -> None:
        """Sums what the sets have counted; row numbers stay with their sets."""
        for one in fields(Counts):
            values = [getattr(counts, one.name) for counts in self.sets.values()]
            if isinstance(getattr(self, one.name), int):
                setattr(self, one.name, sum(values))
            elif isinstance(getattr(self, one.name), Counter):
                setattr(self, one.name, sum(values, Counter()))

    def merge(self, later: Counts) -> None:
        """Adds what became of the records that follow these, set by set."""
        assert isinstance(later, MixedCounts)
        for name, counts in later.sets.items():
            self.sets[name].merge(counts)
        self.notes.update(later.notes)
        self.add_up()

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with every set's own counts under `sets`."""
        self.add_up()
        sets = {
            name: counts.as_dict() | ({"note": self.notes[name]} if name in self.notes else {})
            for name, counts in self.sets.items()
        }
        return {**super().as_dict(), "sets": sets}

    def lines(self, *, tokens: bool) -> list[str]:
        """The sums, then each set's counts under its name."""
        self.add_up()
        lines = [self.headline(tokens=tokens)]
        for name, counts in self.sets.items():
            own = counts.lines(tokens=tokens)
            share = f" ({counts.rows_out / self.rows_out:.1%} of the rows)" if self.rows_out else ""
            lines += [f"{name}: {own[0]}{share}", *(f"  {line}" for line in own[1:])]
            if name in self.notes:
                lines.append(f"  note: {self.notes[name]}")
        return lines


class Mixture(Pipeline):
    """A pipeline of `kind` for each set, which share a tokenizer. Iterate `prepared()`."""

    takes_mix: ClassVar[bool] = True

    def __init__(
        self,
        options: DataOptions,
        registry: Registry,
        *,
        kind: type[Pipeline] = Pipeline,
        template: Template | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__(options, registry, template=template, tokenizer=tokenizer)
        self.kind = kind
        self.names = _names(options.mix)
        self.pipelines = [self._pipeline(one) for one in options.mix]
        self.counts: MixedCounts = self._counts()

    @property
    def one_template(self) -> bool:
        """Whether every set is rendered by the mixture's own template."""
        return all(pipeline.template.source == self.template.source for pipeline in self.pipelines)

    def _pipeline(self, one: MixedSet) -> Pipeline:
        own = {name: value for name in one.model_fields_set if (value := getattr(one, name)) is not None}
        update = {name: own[name] for name in DataOptions.model_fields if name in own and name != "filter"}
        shared = not {"template", "chat_template_kwargs"} & update.keys()
        options = self.options.model_copy(
            update={
                "limit": None,
                **({"chat_template_kwargs": {}, "end_marker": None} if shared else {}),  # the template has them
                **update,
                "filter": (*self.options.filter, *one.filter),
                "mix": (),
                "dedup": None,
                "shuffle": None,
            }
        )
        return self.kind(options, self.registry, template=self.template if shared else None, tokenizer=self.tokenizer)

    def counts_of(self, item: Sample) -> Counts:
        """Where a sample is counted: with its set."""
        return self.counts.sets[item.rendered.source]

    def open(self) -> Iterator[Record | RecordError]:
        """Refuses: the records of several sets are of no one shape."""
        raise ConfigError("a mixture is read through prepared(): its sets have adapters of their own")

    def take_counts(self) -> Counts:
        """What was counted so far; counting begins anew."""
        counts = self.counts
        for pipeline in self.pipelines:
            pipeline.take_counts()
        self.counts = self._counts()
        return counts

    def _counts(self) -> MixedCounts:
        return MixedCounts(sets={name: one.counts for name, one in zip(self.names, self.pipelines, strict=True)})

    def chunks(self) -> Iterator[Chunk]:
        """Every set's records in the order in which they are drawn, so many at a time."""
        sets = self.options.mix
        mix = Mix(
            openers=[self._opener(index) for index in range(len(sets))],
            weights=[one.weight or 1.0 for one in sets],
            strategy=strategy_of(self.options),
            seed=self.options.shuffle or 0,
        )
        drawn = self._chosen_of(islice(mix, self.options.limit))
        for records, error in chunked(drawn, _CHUNK):
            yield Chunk(records=records, adapters=self._adapters(), error=error)
        yield Chunk(records=[], adapters=self._adapters(), notes=self._notes(mix.passes))

    def of_chunk(self, chunk: Chunk) -> Iterator[SampleBatch]:
        """What comes of a chunk's records, in their order."""
        self.take_adapters(chunk.adapters)
        items = self._together(chunk.records)
        while some := list(islice(items, BATCH)):
            tokenized = [item.tokenized for item in some if item.tokenized is not None]
            yield SampleBatch(items=some, columns=TokenizedColumns.of(tokenized) if tokenized else None)
        self.counts.notes.update(chunk.notes)
        self.counts.add_up()
        if chunk.error is not None:
            raise chunk.error

    def take_adapters(self, names: Sequence[str | None]) -> None:
        """Reads each set's records by the adapter that another's records have told."""
        for pipeline, name in zip(self.pipelines, names, strict=True):
            pipeline.take_adapters([name])

    def _adapters(self) -> tuple[str | None, ...]:
        return tuple(pipeline.reader.adapter_name for pipeline in self.pipelines)

    def _notes(self, passes: Iterable[Passes]) -> dict[str, str]:
        """What mixing did with each set's rows, where there is something to say."""
        notes = {}
        for name, pipeline, one, of in zip(self.names, self.pipelines, self.options.mix, passes, strict=True):
            adapter = pipeline.adapter
            told = f"adapter {adapter.name}, told by the records' keys" if adapter and not one.adapter else ""
            if note := "; ".join(filter(None, (_note(of), told))):
                notes[name] = note
        return notes

    def prepared_batches(self) -> Iterator[SampleBatch]:
        """Every set's samples, in the order in which their records were drawn."""
        for chunk in self.chunks():
            yield from self.of_chunk(chunk)
        self.check_any_left()

    def check_any_left(self) -> None:
        """Raises `ConfigError` where records of a set came in and none came out."""
        for name, pipeline in zip(self.names, self.pipelines, strict=True):
            try:
                pipeline.check_any_left()
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error

    def _opener(self, index: int) -> Callable[[], Iterable[Record | RecordError]]:
        pipeline, repeat = self.pipelines[index], self.options.mix[index].repeat

        def opened() -> Iterator[Record | RecordError]:
            for _ in range(repeat):
                for row, record in enumerate(pipeline.open()):
                    yield placed(record, row)

        return opened

    def _chosen_of(self, drawn: Iterable[Drawn[Record | RecordError]]) -> Iterable[Drawn[Record | RecordError]]:
        """Without repeats over all sets, shuffled, as the options say."""
        if self.options.dedup is not None:
            from templatekit.pipeline.deduplication import Item, texts_of, without_repeats

            items = (Item(record, index * _PLACES + _row(record)) for index, record in drawn)

            def read(place: int, record: Record) -> list[Example]:
                return self.pipelines[place // _PLACES].reader.examples(record)

            def name(place: int) -> str:
                return f"{place % _PLACES} of {self.names[place // _PLACES]}"

            kept = without_repeats(items, texts_of(self.options.dedup), read, name)
            drawn = (
                Drawn(place // _PLACES, record.at(None, place % _PLACES) if isinstance(record, RecordError) else record)
                for record, place in kept
            )
        if self.options.shuffle is None:
            return drawn
        return shuffled(drawn, seed=self.options.shuffle, buffer=self.options.shuffle_buffer)

    def _together(self, chunk: list[Drawn[Record | RecordError]]) -> Iterator[Sample]:
        """What comes of the records, each set's by its own pipeline, in the order of the records."""
        done: dict[int, list[Sample]] = {}
        for index in dict.fromkeys(drawn.set for drawn in chunk):
            pipeline = self.pipelines[index]
            done[index] = []
            for records in _apart(drawn.item for drawn in chunk if drawn.set == index):
                for batch in pipeline.some_batches(records, source=pipeline.options.dataset):
                    done[index] += (self._named(item, self.names[index]) for item in batch)
            done[index].reverse()
        for index, record in chunk:
            row, last = row_of(record, -1), -1
            items = done[index]
            while items and items[-1].rendered.row == row and items[-1].rendered.sample > last:
                last = items[-1].rendered.sample
                yield items.pop()

    def _named(self, item: Sample, name: str) -> Sample:
        rendered = replace(item.rendered, source=name)
        tokenized = item.tokenized and replace(item.tokenized, rendered=rendered)
        return replace(item, rendered=rendered, tokenized=tokenized)


def pipeline_of(
    options: DataOptions,
    registry: Registry,
    *,
    kind: type[Pipeline] = Pipeline,
    template: Template | None = None,
    tokenizer: Tokenizer | None = None,
) -> Pipeline:
    """The pipeline of `kind` for the options' set, or the mixture of their sets."""
    if options.mix:
        return Mixture(options, registry, kind=kind, template=template, tokenizer=tokenizer)
    return kind(options, registry, template=template, tokenizer=tokenizer)


def strategy_of(options: DataOptions) -> Strategy:
    """What the options name; else rows are drawn where a set has a weight, and sets follow each other if not."""
    if options.mix_strategy is not None:
        return options.mix_strategy
    return "all_exhausted" if any(one.weight is not None for one in options.mix) else "concat"


def _apart(records: Iterable[Record | RecordError]) -> Iterator[list[Record | RecordError]]:
    """The records, cut where one comes twice in a row: its samples must not pass for samples of one."""
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
    names = [one.name or one.dataset for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"mix: two sets are named {twice!r}; give one of them a name of its own: name=…")
    return names


def _note(passes: Passes) -> str:
    if passes.left:
        return f"only its first {passes.taken:,} rows were drawn; the others were not read"
    if passes.whole > 1 or (passes.whole and passes.taken):
        more = f" and {passes.taken:,} rows of another pass" if passes.taken else ""
        times = "once" if passes.whole == 1 else f"{passes.whole} times"
        return f"gone through {times}{more}"
    return ""
