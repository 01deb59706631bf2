"""The stages joined: records in, tokenized examples out, and a count of everything that was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from templatekit.config import DataOptions
from templatekit.contracts import Adapter
from templatekit.errors import ConfigError, RecordError, TemplatekitError
from templatekit.formats.lookup import choose_adapter, find_template
from templatekit.formats.template import Template
from templatekit.registry import Registry, create_registry
from templatekit.sources import map_columns, open_source
from templatekit.tokens.cuts import Encoder
from templatekit.tokens.load import find_tokenizer, from_transformers
from templatekit.tokens.supervision import loss_spans
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.tokens.truncation import check_length
from templatekit.types import NO_TOKENIZER, Example, LossSpan, Record, RenderedText, TokenizedExample

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

BATCH = 256
"""Records that go to the encoder in one call."""


@dataclass(kw_only=True)
class Counts:
    """What became of the records."""

    rows_in: int = 0
    rows_out: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows by reason code."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """The first message of each reason."""
    empty_responses: int = 0
    """Rows whose answer is empty or whitespace: rendered, and worth a look."""
    unread_keys: dict[str, int] = field(default_factory=dict)
    """Keys that the adapter does not read, with the first row that has them."""

    def drop(self, error: RecordError) -> None:
        """Counts a row that does not come out."""
        self.dropped[error.reason] += 1
        self.first_dropped.setdefault(error.reason, str(error))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dropped": dict(self.dropped),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "empty_responses": self.empty_responses,
            "unread_keys": self.unread_keys,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One record after all stages."""

    example: Example
    rendered: RenderedText
    tokenized: TokenizedExample | None = None
    """None without a tokenizer."""


class Pipeline:
    """Adapter, template and tokenizer, set up once for any number of records.

    Iterate `run(records)`; `counts` tells afterwards what became of them. Without an adapter the first record's keys
    choose one.
    """

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
        if tokenizer is None and options.tokenizer is not None:
            tokenizer = find_tokenizer(options.tokenizer, registry)
        self.tokenizer = tokenizer
        self.adapter = adapter or (registry.adapters[options.adapter] if options.adapter else None)
        self.template = template or find_template(
            options.template, registry, chat_template=tokenizer.chat_template if tokenizer else None
        )
        self.special_tokens = tokenizer.special_tokens if tokenizer else NO_TOKENIZER
        self.encoder = Encoder(tokenizer, boundary=options.boundary) if tokenizer else None
        self.counts = Counts()
        self._no_context = {text.strip().casefold() for text in options.empty_context}

    def open(self) -> Iterator[Record | RecordError]:
        """The records of the options' data set."""
        return open_source(self.options.dataset, self.registry, columns=self.options.columns, limit=self.options.limit)

    def run(self, records: Iterable[Record | RecordError], *, source: str | None = None) -> Iterator[Prepared]:
        """Every record's example, in order.

        A record that cannot be used raises its `RecordError`, or, with `on_error="skip"`, is counted. `ConfigError`
        at the end where records came in and none came out.
        """
        numbered = enumerate(records)
        while chunk := list(islice(numbered, BATCH)):
            rendered = [item for row, record in chunk if (item := self._render(row, record, source)) is not None]
            for item in self._encode(rendered, source):
                self.counts.rows_out += 1
                yield item
        if self.counts.rows_in and not self.counts.rows_out:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.counts.dropped.most_common())
            first = next(iter(self.counts.first_dropped.values()), "")
            raise ConfigError(f"0 of {self.counts.rows_in} samples left; dropped: {reasons}; the first: {first}")

    def prompt_ids(self, example: Example) -> tuple[int, ...]:
        """The ids a server feeds to have this example's last answer generated."""
        if self.encoder is None:
            raise ConfigError("ids need a tokenizer; none was given")
        return self.encoder.encode(self.template.prompt(example, self.special_tokens)).input_ids

    def _render(self, row: int, record: Record | RecordError, source: str | None) -> Prepared | None:
        self.counts.rows_in += 1
        try:
            if isinstance(record, RecordError):
                raise record
            example = self._adapt(row, record)
            rendered = self.template.render(example, self.special_tokens, row=row)
        except RecordError as error:
            self._refuse(error.at(source, row))
            return None
        except TemplatekitError:
            raise
        if any(m.role == "assistant" and not (m.content.strip() or m.tool_calls) for m in example.messages):
            self.counts.empty_responses += 1
        return Prepared(example=example, rendered=rendered)

    def _adapt(self, row: int, record: Record) -> Example:
        if self.adapter is None:
            self.adapter = choose_adapter(record.keys(), self.registry)
        try:
            example = self.adapter.to_example(record)
        except TemplatekitError:
            raise
        except Exception as error:  # a plugin's code may raise anything
            raise RecordError(
                f"adapter {self.adapter.name!r} raised {type(error).__name__}: {error}", reason="adapter_failed"
            ) from error
        if not isinstance(example, Example):
            raise RecordError(
                f"adapter {self.adapter.name!r} returned {type(example).__name__}; expected an Example",
                reason="adapter_failed",
            )
        for key in record.keys() - set(self.adapter.keys) - self.counts.unread_keys.keys():
            self.counts.unread_keys[key] = row
        return self._without_placeholders(example) if self._no_context else example

    def _without_placeholders(self, example: Example) -> Example:
        """Contexts that the options name as meaning none (`<noinput>`) become empty."""
        messages = tuple(
            replace(message, context="") if message.context.strip().casefold() in self._no_context else message
            for message in example.messages
        )
        return replace(example, messages=messages)

    def _encode(self, items: list[Prepared], source: str | None) -> Iterator[Prepared]:
        if self.encoder is None:
            yield from items
            return
        texts: list[tuple[RenderedText, tuple[LossSpan, ...]]] = [
            (item.rendered, loss_spans(item.rendered, self.options.train_on)) for item in items
        ]
        for item, tokenized in zip(items, self.encoder.encode_batch(texts), strict=True):
            try:
                check_length(tokenized, self.options.max_length)
            except RecordError as error:
                error.at(source, tokenized.row)
                if self.options.truncation == "error":
                    raise
                self.counts.drop(error)
                continue
            self.counts.tokens += len(tokenized)
            self.counts.trained_tokens += tokenized.trained_tokens
            yield replace(item, tokenized=tokenized)

    def _refuse(self, error: RecordError) -> None:
        if self.options.on_error == "stop":
            raise error
        self.counts.drop(error)


def render(
    records: str | Iterable[Record],
    *,
    adapter: str | Adapter | None = None,
    template: str | Template = "alpaca",
    tokenizer: str | Tokenizer | PreTrainedTokenizerBase | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> Iterator[TokenizedExample | RenderedText]:
    """Renders records, or the data set at an address, one by one.

    Yields `TokenizedExample`s, or `RenderedText`s without a tokenizer. `options` are the other fields of
    `DataOptions`: `train_on`, `max_length`, `columns`, `on_error`, …
    """
    pipeline, source = _pipeline(records, adapter, template, tokenizer, registry, options)
    for item in pipeline.run(source, source=pipeline.options.dataset if isinstance(records, str) else None):
        yield item.tokenized or item.rendered


def prepare(
    records: str | Iterable[Record],
    *,
    tokenizer: str | Tokenizer | PreTrainedTokenizerBase,
    adapter: str | Adapter | None = None,
    template: str | Template = "alpaca",
    registry: Registry | None = None,
    **options: Any,
) -> datasets.Dataset:
    """Records as a `datasets.Dataset` with `input_ids` and `labels`, which any trainer takes as it is.

    Where a weight is neither 0 nor 1 there is a column `loss_weights` too, for trainers that know it.
    """
    import datasets
    import pyarrow as pa

    pipeline, source = _pipeline(records, adapter, template, tokenizer, registry, options)
    ids: list[Any] = []
    labels: list[Any] = []
    weights: list[Any] = []
    for item in pipeline.run(source, source=pipeline.options.dataset if isinstance(records, str) else None):
        assert item.tokenized is not None
        ids.append(item.tokenized.input_ids)
        labels.append(item.tokenized.labels)
        weights.append(item.tokenized.loss_weights)
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32())), "labels": pa.array(labels, pa.list_(pa.int32()))}
    if any(weight not in (0, 1) for row in weights for weight in row):
        columns["loss_weights"] = pa.array(weights, pa.list_(pa.float32()))
    return datasets.Dataset(pa.table(columns))


def _pipeline(
    records: str | Iterable[Record],
    adapter: str | Adapter | None,
    template: str | Template,
    tokenizer: str | Tokenizer | PreTrainedTokenizerBase | None,
    registry: Registry | None,
    options: Mapping[str, Any],
) -> tuple[Pipeline, Iterable[Record | RecordError]]:
    """The pipeline for what the Python calls take: names, or the things themselves."""
    named: dict[str, Any] = {
        "dataset": records if isinstance(records, str) else None,
        "adapter": adapter if isinstance(adapter, str) else None,
        "template": template if isinstance(template, str) else None,
        "tokenizer": tokenizer if isinstance(tokenizer, str) else None,
    }
    parsed = DataOptions.parse({**options, **{key: value for key, value in named.items() if value is not None}})
    if tokenizer is not None and not isinstance(tokenizer, (str, Tokenizer)):
        tokenizer = from_transformers(tokenizer)
    pipeline = Pipeline(
        parsed,
        registry or create_registry(),
        adapter=adapter if isinstance(adapter, Adapter) else None,
        template=template if isinstance(template, Template) else None,
        tokenizer=tokenizer if isinstance(tokenizer, Tokenizer) else None,
    )
    if isinstance(records, str):
        return pipeline, pipeline.open()
    return pipeline, _mapped(islice(records, parsed.limit), parsed.columns)


def _mapped(records: Iterable[Record], columns: Mapping[str, str]) -> Iterator[Record | RecordError]:
    for record in records:
        try:
            yield map_columns(record, columns)
        except RecordError as error:
            yield error
