"""The stages joined: records in, tokenized examples out, and a count of everything that was dropped and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import ClassVar

from templatekit.config.options import DataOptions
from templatekit.config.train_on import parse_train_on
from templatekit.errors import NOTHING_TRAINED, ConfigError, LeftOut, RecordError
from templatekit.formats.lookup import check_end_marker, find_template
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.registry import Registry
from templatekit.pipeline.batches import BATCH, SampleBatch
from templatekit.pipeline.chunks import CHUNK, Chunk, chunked
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.garbage_collection import rarely_collected
from templatekit.pipeline.reader import Reader
from templatekit.sources.shuffle import row_of
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.load import find_tokenizer
from templatekit.tokens.supervision import Losses, loss_spans
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.tokens.truncation import Limit
from templatekit.types import NO_TOKENIZER, Example, PreferenceExample, Record, RenderedText, Sample


class Pipeline:
    """Adapter, template and tokenizer, set up once for any number of records.

    Iterate `run(records)`, or `batches(records)` for columns; `counts` tells afterwards what became of them. Without an
    adapter the first record's keys choose one.
    """

    takes_mix: ClassVar[bool] = False
    """Whether it reads the several sets of `mix`."""

    def __init__(
        self,
        options: DataOptions,
        registry: Registry,
        *,
        adapter: Adapter | None = None,
        template: Template | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.options = options
        self.registry = registry
        if options.mix and not self.takes_mix:
            raise ConfigError("mix: one set is read at a time here; found several; name one of them (--dataset)")
        if options.max_length is not None and options.tokenizer is None and tokenizer is None:
            raise ConfigError(
                f"max_length={options.max_length} counts tokens; found no tokenizer; expected --tokenizer too"
            )
        self.given_tokenizer = tokenizer
        if tokenizer is None and options.tokenizer is not None:
            tokenizer = find_tokenizer(options.tokenizer, registry)
        self.tokenizer = tokenizer
        self.reader = Reader(options, registry, adapter=adapter)
        kwargs = options.chat_template_kwargs
        self.template = (template.with_kwargs(kwargs) if template and kwargs else template) or find_template(
            options.template, registry, chat_template=tokenizer.chat_template if tokenizer else None, kwargs=kwargs
        )
        self.special_tokens = tokenizer.special_tokens if tokenizer else NO_TOKENIZER
        if options.end_marker is not None:
            self.template = self.template.ended_by(options.end_marker)
            if options.end_marker != "none":
                check_end_marker(options.end_marker, self.template, self.special_tokens)
        self.encoder = (
            Encoder(tokenizer, boundary=options.boundary, control_tokens=options.control_tokens, reuse=options.reuse)
            if tokenizer
            else None
        )
        self.limit = self.limit_of(options)
        self.counts = Counts()

    def limit_of(self, options: DataOptions) -> Limit | None:
        """What the options make of samples that are too long; None where they set no length."""
        if options.max_length is None or self.encoder is None:
            return None
        return Limit(
            options.max_length,
            options.truncation,
            render=self._whole_text,
            encoder=self.encoder,
            train_on=options.train_on,
        )

    @property
    def adapter(self) -> Adapter | None:
        """What reads the records; None while none is named and no record has told it."""
        return self.reader.adapter

    def open(self) -> Iterator[Record | RecordError]:
        """The records of the options' data set."""
        return self.reader.open()

    def prepared(self) -> Iterator[Sample]:
        """What comes of the options' data set."""
        return chain.from_iterable(self.prepared_batches())

    def prepared_batches(self) -> Iterator[SampleBatch]:
        """The same, many samples at once."""
        return self.batches(self.open(), source=self.options.dataset)

    def chunks(self) -> Iterator[Chunk]:
        """The records of the options' data set, some at a time: what `of_chunk` takes, here or in another process."""
        return self.chunks_of(self.open())

    def chunks_of(
        self, records: Iterable[Record | RecordError], *, first_row: int = 0, given: bool = False
    ) -> Iterator[Chunk]:
        """The same of records that are read as `open` reads them, by `gathered`; `given` by a caller, with no address.

        Rows are counted from `first_row`.
        """
        for some, error in chunked(records, CHUNK):
            yield Chunk(
                records=some, first_row=first_row, given=given, adapters=(self.reader.adapter_name,), error=error
            )
            first_row += len(some)

    def of_chunk(self, chunk: Chunk) -> Iterator[SampleBatch]:
        """What comes of a chunk's records."""
        self.take_adapters(chunk.adapters)
        source = None if chunk.given else self.options.dataset
        yield from self.some_batches(chunk.records, source=source, first_row=chunk.first_row)
        if chunk.error is not None:
            raise chunk.error

    def take_adapters(self, names: Sequence[str | None]) -> None:
        """Reads records by the adapters that another's records have told."""
        if names[0] is not None:
            self.reader.adapter = self.registry.adapters[names[0]]

    def counts_of(self, item: Sample) -> Counts:
        """Where a sample is counted."""
        return self.counts

    def take_counts(self) -> Counts:
        """What was counted so far; counting begins anew."""
        counts, self.counts = self.counts, Counts()
        return counts

    def run(
        self, records: Iterable[Record | RecordError], *, source: str | None = None, first_row: int = 0
    ) -> Iterator[Sample]:
        """Every record's samples, in order; rows are counted from `first_row`.

        A record that cannot be used raises its `RecordError`, or, with `on_error="skip"`, is counted. What nothing is
        trained of is counted in any case. `ConfigError` at the end where records came in and none came out.
        """
        for batch in self.batches(records, source=source, first_row=first_row):
            yield from batch

    def batches(
        self, records: Iterable[Record | RecordError], *, source: str | None = None, first_row: int = 0
    ) -> Iterator[SampleBatch]:
        """The same as `run`, many samples at once: never none, and no order but theirs."""
        yield from self.some_batches(records, source=source, first_row=first_row)
        self.check_any_left()

    def some_batches(
        self, records: Iterable[Record | RecordError], *, source: str | None = None, first_row: int = 0
    ) -> Iterator[SampleBatch]:
        """The same for records that are not all: where none of them comes out it is no error."""
        return rarely_collected(self._made(records, source, first_row))

    def _made(
        self, records: Iterable[Record | RecordError], source: str | None, first_row: int
    ) -> Iterator[SampleBatch]:
        rendered = (
            item
            for row, record in enumerate(records, first_row)
            for item in self._render(row_of(record, row), record, source)
        )
        last = None
        for chunk, error in chunked(rendered, BATCH):
            for batch in self._finish(chunk, source):
                rows = [last, *(item.rendered.row for item in batch.items)]
                self.counts.rows_out += sum(row != before for before, row in pairwise(rows))
                self.counts.samples += len(batch)
                self.counts.tokens += batch.tokens
                self.counts.trained_tokens += batch.trained_tokens
                last = rows[-1]
                yield batch
            if error is not None:  # of a record behind these, which have their own errors first
                raise error

    def check_any_left(self) -> None:
        """Raises `ConfigError` where records came in and none came out."""
        if self.counts.rows_in and not self.counts.rows_out:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.counts.dropped.most_common())
            first = next(iter(self.counts.first_dropped.values()), "")
            raise ConfigError(f"0 of {self.counts.rows_in} samples left; dropped: {reasons}; the first: {first}")

    def prompt_ids(self, example: Example) -> tuple[int, ...]:
        """The ids a server feeds to have this example's last answer generated."""
        if self.encoder is None:
            raise ConfigError("ids need a tokenizer; none was given")
        return self.encoder.encode(self.template.prompt(example, self.special_tokens)).input_ids

    def _render(self, row: int, record: Record | RecordError, source: str | None) -> list[Sample]:
        self.counts.rows_in += 1
        try:
            if isinstance(record, RecordError):
                raise record
            found = self.reader.examples(record)
            for key in self.reader.unread(record):
                self.counts.unread_keys.setdefault(key, row)
            conversations: list[Example] = []
            for example in found:
                conversations += self._conversations(example)
            samples: list[Sample] = []
            for example in conversations:
                samples += self._samples(example, row)
        except RecordError as error:
            error.at(source, row)
            if self.options.on_error == "stop" and not isinstance(error, LeftOut):
                error.message += "; to skip: --on-error skip"
                raise
            self.counts.drop(error)
            return []
        for example in found:
            self._count(example)
        if any(_holds_no_answer(sample.example) for sample in samples):
            self.counts.empty_responses += 1
        if len(conversations) > 1:  # of one the samples are numbered
            samples = [
                replace(sample, rendered=replace(sample.rendered, sample=number, samples=len(samples)))
                for number, sample in enumerate(samples)
            ]
        return [Sample(example=sample.example, rendered=sample.rendered) for sample in samples]

    def _conversations(self, example: Example) -> tuple[Example, ...]:
        """What is rendered of an example: all of it; of a preference pair the chosen answer, as training follows it."""
        return (example.conversation("chosen") if isinstance(example, PreferenceExample) else example,)

    def _count(self, example: Example) -> None:
        self.counts.add(example)

    def _samples(self, example: Example, row: int) -> tuple[Sample, ...]:
        example = self.reader.without_placeholders(example)
        base, _, named = parse_train_on(self.options.train_on)
        if base == "all" or (base == "last" and named):  # one text, whatever of earlier turns is trained in it
            rendered = self.template.render(example, self.special_tokens, row=row)
            return (Sample(example=example, rendered=rendered),)
        samples = self.template.samples(example, self.special_tokens, row=row, last_only=base == "last")
        if base != "last":
            found = samples[0].rendered.target_messages.union(*(s.rendered.target_messages for s in samples[1:]))
            if found:
                turns = [index for index, m in enumerate(example.messages) if m.role == "assistant" and m.weight]
                self.counts.untrained_turns += sum(index not in found for index in turns)
        return samples

    def _whole_text(self, example: Example, row: int) -> RenderedText:
        """One text for all messages of a sample; of turns that are not trained nothing is asked."""
        base, _, named = parse_train_on(self.options.train_on)
        if base == "last" and not named:
            return self.template.samples(example, self.special_tokens, row=row, last_only=True)[-1].rendered
        return self.template.render(example, self.special_tokens, row=row)

    def _finish(self, items: list[Sample], source: str | None) -> Iterator[SampleBatch]:
        """What comes out of rendered items, at most one batch; an error is raised behind what came before it."""
        if self.encoder is None:
            yield from self._finish_one_by_one(items, source)
            return
        train_on = self.options.train_on
        columns = self.encoder.encode_columns((item.rendered, Losses(item.rendered, train_on)) for item in items)
        lengths, trained = columns.lengths.tolist(), columns.trained_tokens.tolist()
        kept: dict[int, Sample | None] = {}
        failure: RecordError | None = None
        for index, item in enumerate(items):
            if not trained[index]:
                self._drop(_untrained(item), item, source)
            elif self.limit is None or lengths[index] <= self.limit.max_length:
                kept[index] = None
            else:
                try:
                    kept.update((index, fitted) for fitted in self._fit([item.with_tokens(columns[index])], source))
                except RecordError as error:
                    failure = error
                    break
        if kept:
            yield SampleBatch.chosen(items, columns, kept)
        if failure is not None:
            raise failure

    def _finish_one_by_one(self, items: list[Sample], source: str | None) -> Iterator[SampleBatch]:
        """The same without columns."""
        kept: list[Sample] = []
        failure: RecordError | None = None
        try:
            for item in self._fit(self._encode(items, source), source):
                kept.append(item)
        except RecordError as error:
            failure = error
        if kept:
            yield SampleBatch(items=kept)
        if failure is not None:
            raise failure

    def _encode(self, items: list[Sample], source: str | None) -> Iterator[Sample]:
        losses = [loss_spans(item.rendered, self.options.train_on) for item in items]
        if self.encoder is None:
            weight = parse_train_on(self.options.train_on).weight
            for item, spans in zip(items, losses, strict=True):
                # Of an empty answer the end marker alone is trained, which only a tokenizer can tell.
                if (weight and item.rendered.target_spans) or any(span.weight for span in spans):
                    yield item
                else:
                    self._drop(_untrained(item), item, source)
            return
        texts = [(item.rendered, spans) for item, spans in zip(items, losses, strict=True)]
        for item, tokenized in zip(items, self.encoder.encode_batch(texts), strict=True):
            if not tokenized.trained_tokens:
                self._drop(_untrained(item), item, source)
                continue
            yield replace(item, tokenized=tokenized)

    def _fit(self, items: Iterable[Sample], source: str | None) -> Iterator[Sample]:
        """The items that are short enough, or made so."""
        for item in items:
            try:
                fitted = self._fitted(item)
            except RecordError as error:
                self._too_long(error, item, source)
                continue
            self._count_shortened(item, fitted, source)
            yield fitted

    def _fitted(self, item: Sample) -> Sample:
        """The item within the limit; raises `RecordError` where it cannot be."""
        if self.limit is None or item.tokenized is None:
            return item
        example, tokenized = self.limit.fit(item.example, item.tokenized)
        return Sample(example=example, rendered=tokenized.rendered, tokenized=tokenized)

    def _count_shortened(self, whole: Sample, fitted: Sample, source: str | None) -> None:
        if whole.tokenized is not None and fitted.tokenized is not None:
            self.counts.shorten(fitted.tokenized, source, len(whole.tokenized))

    def _too_long(self, error: RecordError, item: Sample, source: str | None) -> None:
        if self.options.truncation == "error":
            error.at(source, item.rendered.row).message += "; to drop: --truncation drop"
            raise error
        self._drop(error, item, source)

    def _drop(self, error: RecordError, item: Sample, source: str | None) -> None:
        self.counts.drop(error.at(source, item.rendered.row))


def _untrained(item: Sample) -> RecordError:
    weights = [message.weight for message in item.example.messages if message.role == "assistant"]
    if not weights:
        why = "no assistant message"
    elif not any(weights):
        why = "all weights are 0"
    else:
        why = "no text" if item.rendered.target_spans else "no turn that a server could be prompted for"
    return RecordError(why, reason=NOTHING_TRAINED)


def _holds_no_answer(example: Example) -> bool:
    return any(
        message.role == "assistant" and not message.content.strip() and not message.tool_calls
        for message in example.messages
    )
