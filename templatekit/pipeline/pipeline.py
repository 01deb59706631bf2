"""`Pipeline`: how a record becomes samples, and where and why it is dropped.

The methods of `Pipeline` are in the order in which a record passes them:

| step | method | reasons to drop the record or a sample of it |
| --- | --- | --- |
| read | `open` | unreadable (`invalid_json`, …), excluded by options (`filtered`, `duplicate`, `near_duplicate`) |
| adapt | `_render_record`, by `Reader.examples` | the adapter's (`bad_messages`, …), `no_adapter`, `bad_arguments`, … |
| render | `_render_conversation` | the template's (`template_refused`, `no_end_marker`, …), `too_long_to_encode` |
| encode | `_finish` | |
| select | `_select`, `_check_trained` without a tokenizer | `nothing_trained`, `too_long` |
| write | `templatekit.pipeline.outputs` | the exporter's: `not_expressible` |

Each step raises a `RecordError` with its reason code, and `Counts.drop` counts it. To find why row 17 was dropped, look
for 17 in `pipeline.counts.dropped_rows`, whose keys are the reasons. The summary names the first five rows of each
reason, `render --json` names all. `templatekit preview --row 17`, with the options of the run, shows the whole message,
but not an exporter's refusal, and not a row of a mixture.

Excluded records and `nothing_trained` never stop the run; `too_long` stops it only with `truncation="error"`. Every
other reason, `not_expressible` too, stops it unless `on_error="skip"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, ClassVar

from templatekit.config.data_options import DataOptions
from templatekit.config.train_on import parse_train_on
from templatekit.errors import NOTHING_TRAINED, ConfigError, ExcludedRecord, RecordError
from templatekit.formats.completeness import without_field
from templatekit.formats.lookup import check_end_marker, find_template
from templatekit.formats.template import Template
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.registry import Registry
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import BATCH_BYTES, BATCH_SIZE, SampleBatch
from templatekit.pipeline.chunks import CHUNK_SIZE, Chunk
from templatekit.pipeline.counts import Counts
from templatekit.pipeline.garbage_collection import with_rare_gc
from templatekit.pipeline.reader import Reader
from templatekit.sources.chunked import chunked
from templatekit.sources.limits import MEGABYTE, told_size
from templatekit.sources.shuffle import row_of
from templatekit.tokens.assembly import EncoderInput
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.load import find_tokenizer
from templatekit.tokens.long_texts import PartialExample, length_in_words, longest_whole
from templatekit.tokens.supervision import LazyLossSpans, loss_spans
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.tokens.truncation import LengthLimit
from templatekit.types import (
    NO_TOKENIZER,
    Example,
    PreferenceExample,
    Record,
    RenderedText,
    Sample,
    TokenizedExample,
)

_NO_TEXT: EncoderInput = (RenderedText(text="", spans=()), ())
_PARTS_OF_A_RECORD = 6
"""The largest record has so many times the characters that are encoded at once: they take up to 300 bytes each."""


class Pipeline:
    """Adapter, template and tokenizer, set up once for any number of records.

    | call | gives |
    | --- | --- |
    | `run()` | the samples of the data set, or of given records |
    | `batches()` | the same in batches, their tokens in columns |
    | `chunks()`, then `process_chunk()` for each | the same; another process may do the second step |

    `counts` then says how many records were read and dropped. Without a named adapter, the first record's keys choose
    one.
    """

    reads_mix: ClassVar[bool] = False
    """Whether it reads the several sets of the option `mix`."""
    inseparable: ClassVar[int] = 1
    """How many consecutive samples belong together, and have to come in one batch."""

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
        if options.mix and not self.reads_mix:
            raise ConfigError("mix: one set is read at a time here; found several; name one of them (--dataset)")
        if options.max_length is not None and options.tokenizer is None and tokenizer is None:
            raise ConfigError(
                f"max_length={options.max_length} counts tokens; found no tokenizer; expected --tokenizer too"
            )
        self.given_tokenizer = tokenizer
        if tokenizer is None and options.tokenizer is not None:
            trusted = options.trust_remote_code
            tokenizer = find_tokenizer(options.tokenizer, registry, trust_remote_code=trusted)
        self.tokenizer = tokenizer
        self.reader = Reader(options, registry, adapter=adapter)
        kwargs = options.chat_template_kwargs
        self.template = (template.with_kwargs(kwargs) if template and kwargs else template) or find_template(
            options.template, registry, chat_template=tokenizer.chat_template if tokenizer else None, kwargs=kwargs
        )
        if options.empty_thought != self.template.empty_thought:
            self.template = self.template.with_empty_thought(options.empty_thought)
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
        self.limit = self.length_limit(options)
        self.counts = Counts()

    def length_limit(self, options: DataOptions) -> LengthLimit | None:
        """How the options shorten samples that are too long; None where they set no maximum length."""
        if options.max_length is None or self.encoder is None:
            return None
        return LengthLimit(
            max_length=options.max_length,
            policy=options.truncation,
            render=self._render_as_one_text,
            encoder=self.encoder,
            train_on=options.train_on,
        )

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that reads the records; None until it is named or the first record has shown it."""
        return self.reader.adapter

    # Entry points

    def run(
        self, records: Iterable[Record | RecordError] | None = None, *, source: str | None = None, first_row: int = 0
    ) -> Iterator[Sample]:
        """The samples of the options' data set, or of `records`, in their order.

        Rows of `records` are counted from `first_row`; errors name `source`. A record that cannot be used raises its
        `RecordError`, or is counted with `on_error="skip"`. A sample of which nothing is trained is always counted.
        Raises `ConfigError` at the end where records came in and no sample came out.
        """
        return chain.from_iterable(self.batches(records, source=source, first_row=first_row))

    def batches(
        self, records: Iterable[Record | RecordError] | None = None, *, source: str | None = None, first_row: int = 0
    ) -> Iterator[SampleBatch]:
        """The same as `run`, in batches of at least one sample."""
        if records is None:
            records, source = self.open(), self.options.dataset
        return self._checked(self.process(records, source=source, first_row=first_row))

    def process(
        self, records: Iterable[Record | RecordError], *, source: str | None = None, first_row: int = 0
    ) -> Iterator[SampleBatch]:
        """The same as `batches` for some of the records: it is no error if no sample comes out."""
        return with_rare_gc(self._process(records, source, first_row))

    def chunks(self) -> Iterator[Chunk]:
        """The records of the options' data set in chunks, for `process_chunk` of this process or another."""
        return self.split_into_chunks(self.open())

    def split_into_chunks(
        self, records: Iterable[Record | RecordError], *, first_row: int = 0, from_caller: bool = False
    ) -> Iterator[Chunk]:
        """Records, as `open` gives them, in chunks; rows are counted from `first_row`."""
        for items, error in chunked(records, CHUNK_SIZE, told_size):
            yield Chunk(
                records=items,
                first_row=first_row,
                from_caller=from_caller,
                adapters=(self.reader.adapter_name,),
                error=error,
            )
            first_row += len(items)

    def process_chunk(self, chunk: Chunk) -> Iterator[SampleBatch]:
        """The samples of a chunk's records; raises the chunk's error after them."""
        self.take_adapters(chunk.adapters)
        source = None if chunk.from_caller else self.options.dataset
        yield from self.process(chunk.records, source=source, first_row=chunk.first_row)
        if chunk.error is not None:
            raise chunk.error

    def take_adapters(self, names: Sequence[str | None]) -> None:
        """Use the adapter that another process inferred from the records; for a mixture, one adapter for each set."""
        if names[0] is not None:
            self.reader.adapter = self.registry.adapters[names[0]]

    def take_counts(self) -> Counts:
        """Return the counts so far, and start with new ones."""
        counts, self.counts = self.counts, Counts()
        return counts

    def counts_of(self, sample: Sample) -> Counts:
        """The counts that a sample is part of: a mixture has one for each set."""
        return self.counts

    def check_any_left(self) -> None:
        """Raise `ConfigError` where records came in and no sample came out."""
        if self.counts.rows_in and not self.counts.rows_out:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.counts.dropped.most_common())
            first = next(iter(self.counts.first_dropped.values()), "")
            raise ConfigError(f"0 of {self.counts.rows_in} samples left; dropped: {reasons}; the first: {first}")

    def prompt_ids(self, example: Example) -> tuple[int, ...]:
        """The ids that a server feeds to the model to generate this example's last answer."""
        if self.encoder is None:
            raise ConfigError("ids need a tokenizer; none was given")
        return self.encoder.encode(self.template.prompt(example, self.special_tokens)).input_ids

    # The steps, in the order in which a record meets them

    def open(self, records: Iterable[Any] | None = None) -> Iterator[Record | RecordError]:
        """The records of the options' data set, or a caller's own, with columns renamed.

        A `RecordError` takes the place of each that is unreadable or excluded.
        """
        return self.reader.open(records)

    def _process(
        self, records: Iterable[Record | RecordError], source: str | None, first_row: int
    ) -> Iterator[SampleBatch]:
        """Adapt and render record by record, then finish the samples batch by batch."""
        last_row = None
        for samples, error in self._rendered(records, source, first_row):
            for batch in self._finish(samples, source):
                rows = [last_row, *(item.rendered.row for item in batch.items)]
                self.counts.rows_out += sum(row != before for before, row in pairwise(rows))
                self.counts.samples += len(batch)
                self.counts.tokens += batch.tokens
                self.counts.trained_tokens += batch.trained_tokens
                last_row = rows[-1]
                yield batch
            if error is not None:  # raised by a later record: errors of these samples come first
                raise error

    def _rendered(
        self, records: Iterable[Record | RecordError], source: str | None, first_row: int
    ) -> Iterator[tuple[list[Sample], Exception | None]]:
        """The rendered samples, a batch at a time, each with the exception that the next record raised, or None."""
        found: list[Sample] = []
        size, error = 0, None
        try:
            for row, record in enumerate(records, first_row):
                samples = self._render_record(row_of(record, row), record, source)
                if not told_size(record):
                    found += samples
                else:
                    for sample in samples:
                        found.append(sample)
                        size += sample.rendered.length
                        if size > BATCH_BYTES and len(found) % self.inseparable == 0:
                            yield found, None
                            found, size = [], 0
                while len(found) >= BATCH_SIZE:
                    yield found[:BATCH_SIZE], None
                    found = found[BATCH_SIZE:]
        except Exception as raised:
            error = raised
        if found or error:
            yield found, error

    def _render_record(self, row: int, record: Record | RecordError, source: str | None) -> list[Sample]:
        """Adapt a record and render its conversations; no sample where it is dropped.

        Raises the `RecordError` if it has to stop the run.
        """
        self.counts.rows_in += 1
        try:
            if isinstance(record, RecordError):
                raise record
            examples = self.reader.examples(record)
            for key in self.reader.unread(record):
                if key not in self.counts.unread_keys:
                    self.counts.add_unread(key, row)
            conversations: list[Example] = []
            for example in examples:
                conversations += self._conversations(example)
            samples: list[Sample] = []
            for example in conversations:
                samples += self._render_conversation(example, row)
        except RecordError as error:
            error.at(source, row)
            if self.options.on_error == "stop" and not isinstance(error, ExcludedRecord):
                error.message += "; to skip: --on-error skip"
                raise
            self.counts.drop(error)
            return []
        for example in examples:
            self._count(example)
        if any(_has_empty_answer(sample.example) for sample in samples):
            self.counts.empty_responses += 1
        if len(conversations) > 1:  # samples of one conversation are numbered already
            samples = [
                replace(sample, rendered=replace(sample.rendered, sample=index, samples=len(samples)))
                for index, sample in enumerate(samples)
            ]
        return samples

    def _conversations(self, example: Example) -> tuple[Example, ...]:
        """The conversations of an example that are rendered: itself, or the chosen one of a preference pair."""
        return (example.conversation("chosen") if isinstance(example, PreferenceExample) else example,)

    def _count(self, example: Example) -> None:
        self.counts.add_example(example)

    def _render_conversation(self, example: Example, row: int) -> tuple[Sample, ...]:
        """The fewest samples of a conversation in which each trained turn has the text that serving would render."""
        example = self.reader.without_placeholders(example)
        left_out: list[str] = []
        while True:
            try:
                samples = self._render_whole(example, row)
            except RecordError as error:
                missing = error.reason == "no_place_for_field"
                smaller = without_field(example, error.field or "") if missing else None
                if smaller is None:
                    raise
                if self.options.on_missing_field == "error":
                    error.message += "; to render without it: --on-missing-field drop"
                    raise
                example, what = smaller
                left_out.append(f"{what} without a place in the template")
            else:
                self._check_lengths(samples)
                self.counts.left_out.update(left_out)
                return samples

    def _check_lengths(self, samples: Sequence[Sample]) -> None:
        """Raise `RecordError` for a text that would be encoded at once, though that takes a gigabyte or more.

        With a maximum length, most texts that are far too long are not encoded whole; see `tokens.long_texts`.
        """
        if self.encoder is None or self.limit is not None:
            return
        longest = max(self.options.max_record_size * MEGABYTE // _PARTS_OF_A_RECORD, MEGABYTE)
        for sample in samples:
            if sample.rendered.length > longest and (part := self.encoder.longest_part(sample.rendered.text)) > longest:
                raise RecordError(
                    f"{part:,} characters of its text must be encoded at once, since nothing shows where they could be "
                    f"divided; expected at most {longest:,}; give the length of an example (--max-length), or raise "
                    "--max-record-size",
                    reason="too_long_to_encode",
                )

    def _render_whole(self, example: Example, row: int) -> tuple[Sample, ...]:
        """The same for an example of which no field is left out."""
        base, _, named = parse_train_on(self.options.train_on)
        if base == "all" or (base == "last" and named):  # one text holds all that is trained
            rendered = self.template.render(example, self.special_tokens, row=row)
            return (Sample(example=example, rendered=rendered),)
        samples = self.template.samples(example, self.special_tokens, row=row, last_only=base == "last")
        if base != "last":
            found = samples[0].rendered.target_messages.union(*(s.rendered.target_messages for s in samples[1:]))
            if found:
                turns = [index for index, m in enumerate(example.messages) if m.role == "assistant" and m.weight]
                self.counts.untrained_turns += sum(index not in found for index in turns)
        return samples

    def _render_as_one_text(self, example: Example, row: int) -> RenderedText:
        """One text for all messages of a sample, to shorten it; turns that are not trained are not checked."""
        base, _, named = parse_train_on(self.options.train_on)
        if base == "last" and not named:
            return self.template.samples(example, self.special_tokens, row=row, last_only=True)[-1].rendered
        return self.template.render(example, self.special_tokens, row=row)

    def _finish(self, samples: list[Sample], source: str | None) -> Iterator[SampleBatch]:
        """Encode rendered samples and drop those that cannot be trained: at most one batch, then perhaps an error."""
        if self.encoder is None:
            if found := [sample for sample in samples if self._check_trained(sample, source)]:
                yield SampleBatch(items=found)
            return
        train_on = self.options.train_on
        texts = [(item.rendered, LazyLossSpans(item.rendered, train_on)) for item in samples]
        partial = self._partial_examples(texts)
        columns = self.encoder.encode_columns(
            [_NO_TEXT if index in partial else text for index, text in enumerate(texts)] if partial else texts
        )
        selected: dict[int, Sample | None] = {}
        failure: RecordError | None = None
        try:
            self._select(samples, columns, partial, source, selected)
        except RecordError as error:
            failure = error
        if selected:
            yield SampleBatch.select(samples, columns, selected)
        if failure is not None:
            raise failure

    def _partial_examples(self, texts: Sequence[EncoderInput]) -> dict[int, PartialExample]:
        """By index, the texts that are surely too long and need not be encoded whole."""
        if self.limit is None:
            return {}
        longest = longest_whole(self.limit.max_length)
        long = [index for index, (rendered, _) in enumerate(texts) if rendered.length > longest]
        found = ((index, self.limit.partial_example(*texts[index])) for index in long)
        return {index: partial for index, partial in found if partial is not None}

    def _check_trained(self, sample: Sample, source: str | None) -> bool:
        """Without a tokenizer: whether any text of the sample is trained; otherwise drop the sample."""
        train_on = self.options.train_on
        if parse_train_on(train_on).weight and sample.rendered.target_spans:
            return True  # an empty answer's end marker is trained, but only a tokenizer can tell
        if any(span.weight for span in loss_spans(sample.rendered, train_on)):
            return True
        self._drop(nothing_trained(sample), sample, source)
        return False

    def _select(
        self,
        samples: Sequence[Sample],
        columns: TokenizedColumns,
        partial: Mapping[int, PartialExample],
        source: str | None,
        selected: dict[int, Sample | None],
    ) -> None:
        """Fill `selected` with the indices of the samples to train on: with None, or with the shortened sample.

        Those in `partial` have no tokens in the columns. The other samples are dropped. With `truncation="error"` the
        first that is too long raises its `RecordError`.
        """
        lengths, trained = columns.lengths.tolist(), columns.trained_tokens.tolist()
        for index, sample in enumerate(samples):
            if not trained[index] and index not in partial:
                self._drop(nothing_trained(sample), sample, source)
            elif self.limit is None or (lengths[index] <= self.limit.max_length and index not in partial):
                selected[index] = None
            else:
                tokenized = partial[index] if index in partial else columns[index]
                whole = sample.with_tokens(tokenized)
                try:
                    fitted = self._fit(self.limit, whole)
                except RecordError as error:
                    self._drop_too_long(error, whole, source)
                else:
                    self._count_truncated(fitted, source, before=tokenized)
                    selected[index] = fitted

    def _fit(self, limit: LengthLimit, whole: Sample) -> Sample:
        """The sample, shortened if it is too long; raises `RecordError` if it cannot be shortened enough."""
        assert whole.tokenized is not None
        example, tokenized = limit.fit(whole.example, whole.tokenized)
        return Sample(example=example, rendered=tokenized.rendered, tokenized=tokenized)

    def _count_truncated(self, fitted: Sample, source: str | None, *, before: TokenizedExample) -> None:
        assert fitted.tokenized is not None
        self.counts.add_truncated(fitted.tokenized, source, length_in_words(before))

    def _drop_too_long(self, error: RecordError, sample: Sample, source: str | None) -> None:
        if self.options.truncation == "error":
            error.at(source, sample.rendered.row).message += "; to drop: --truncation drop"
            raise error
        self._drop(error, sample, source)

    def _drop(self, error: RecordError, sample: Sample, source: str | None) -> None:
        self.counts.drop(error.at(source, sample.rendered.row))

    def _checked(self, batches: Iterator[SampleBatch]) -> Iterator[SampleBatch]:
        yield from batches
        self.check_any_left()


def nothing_trained(sample: Sample) -> RecordError:
    """The error that drops a sample without a trained token; it names the cause, if the messages show it."""
    weights = [message.weight for message in sample.example.messages if message.role == "assistant"]
    if not weights:
        why = "no assistant message"
    elif not any(weights):
        why = "all weights are 0"
    else:
        why = "no text" if sample.rendered.target_spans else "no turn that a server could be prompted for"
    return RecordError(why, reason=NOTHING_TRAINED)


def _has_empty_answer(example: Example) -> bool:
    return any(
        message.role == "assistant" and not message.content.strip() and not message.tool_calls
        for message in example.messages
    )
