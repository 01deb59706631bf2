"""The stages joined: records in, tokenized examples out, and a count of everything that was dropped and why."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from templatekit.config import DataOptions
from templatekit.contracts import Adapter
from templatekit.counts import Counts
from templatekit.errors import ConfigError, PluginError, RecordError, TemplatekitError, shorten
from templatekit.formats.lookup import choose_adapter, find_template
from templatekit.formats.template import Template
from templatekit.registry import Registry
from templatekit.sources import open_source
from templatekit.sources.gather import columns_of, gather
from templatekit.tokens.cuts import Encoder
from templatekit.tokens.load import find_tokenizer
from templatekit.tokens.supervision import loss_spans
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.tokens.truncation import Limit
from templatekit.types import (
    NO_TOKENIZER,
    Example,
    LossSpan,
    Message,
    PreferenceExample,
    Record,
    RenderedText,
    TokenizedExample,
)

BATCH = 256
"""Records that go to the encoder in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One record after all stages."""

    example: Example
    rendered: RenderedText
    tokenized: TokenizedExample | None = None
    """None without a tokenizer."""

    @property
    def result(self) -> TokenizedExample | RenderedText:
        """What came of the record: with a tokenizer the tokenized example, without one the rendered text."""
        return self.rendered if self.tokenized is None else self.tokenized


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
        if options.max_length is not None and options.tokenizer is None and tokenizer is None:
            raise ConfigError(
                f"max_length={options.max_length} counts tokens; found no tokenizer; expected --tokenizer too"
            )
        if tokenizer is None and options.tokenizer is not None:
            tokenizer = find_tokenizer(options.tokenizer, registry)
        self.tokenizer = tokenizer
        self.adapter = adapter or (registry.adapters[options.adapter] if options.adapter else None)
        kwargs = options.chat_template_kwargs
        self.template = (template.with_kwargs(kwargs) if template and kwargs else template) or find_template(
            options.template, registry, chat_template=tokenizer.chat_template if tokenizer else None, kwargs=kwargs
        )
        self.special_tokens = tokenizer.special_tokens if tokenizer else NO_TOKENIZER
        self.encoder = (
            Encoder(tokenizer, boundary=options.boundary, control_tokens=options.control_tokens) if tokenizer else None
        )
        self.limit = self.limit_of(options)
        self.counts = Counts()
        self._no_context = {text.strip().casefold() for text in options.empty_context}

    def limit_of(self, options: DataOptions) -> Limit | None:
        """What the options make of samples that are too long; None where they set no length."""
        if options.max_length is None or self.encoder is None:
            return None
        return Limit(
            options.max_length,
            options.truncation,
            render=lambda example, row: self.template.render(example, self.special_tokens, row=row),
            encoder=self.encoder,
            train_on=options.train_on,
        )

    def open(self) -> Iterator[Record | RecordError]:
        """The records of the options' data set."""
        return self.gathered(open_source(self.options.dataset, self.registry, columns=self.options.columns))

    def gathered(self, records: Iterable[Record | RecordError]) -> Iterator[Record | RecordError]:
        """At most `limit` of the records; those that make one example come together, as the adapter says."""
        return islice(gather(records, self._group), self.options.limit)

    def run(
        self, records: Iterable[Record | RecordError], *, source: str | None = None, first_row: int = 0
    ) -> Iterator[Prepared]:
        """Every record's examples, in order; rows are counted from `first_row`.

        A record that cannot be used raises its `RecordError`, or, with `on_error="skip"`, is counted. `ConfigError`
        at the end where records came in and none came out.
        """
        numbered = enumerate(records, first_row)
        last = None
        while chunk := list(islice(numbered, BATCH)):
            rendered = [item for row, record in chunk for item in self._render(row, record, source)]
            for item in self._encode(rendered, source):
                self.counts.examples_out += 1
                self.counts.rows_out += item.rendered.row != last
                last = item.rendered.row
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

    def _render(self, row: int, record: Record | RecordError, source: str | None) -> list[Prepared]:
        self.counts.rows_in += 1
        try:
            if isinstance(record, RecordError):
                raise record
            found = self._adapt(row, record)
            items = [self._rendered(example, row) for example in found]
        except RecordError as error:
            error.at(source, row)
            if self.options.on_error == "stop":
                error.message += "; to skip: --on-error skip"
                raise
            self.counts.drop(error)
            return []
        for example in found:
            self.counts.add(example)
        messages = chain.from_iterable(item.example.messages for item in items)
        if any(m.role == "assistant" and not (m.content.strip() or m.tool_calls) for m in messages):
            self.counts.empty_responses += 1
        return items

    def _rendered(self, example: Example, row: int) -> Prepared:
        """One example; of a preference pair the conversation with the chosen answer, as all stages are supervised."""
        if isinstance(example, PreferenceExample):
            example = example.conversation("chosen")
        if self._no_context:
            example = self._without_placeholders(example)
        return Prepared(example=example, rendered=self.template.render(example, self.special_tokens, row=row))

    def _adapt(self, row: int, record: Record) -> list[Example]:
        if self.adapter is None:
            self.adapter = self._choose_adapter(record)
        adapter = self.adapter
        try:
            # A copy: whatever a plugin does to its record, the caller's stays as it is.
            found = list(adapter.to_examples({key: _copied(value) for key, value in record.items()}))
        except TemplatekitError:
            raise
        except (Exception, SystemExit) as error:  # a plugin's code may raise anything
            raise self._broken(f"raised {type(error).__name__}: {error}") from error
        if not found:
            raise self._broken("returned no example; expected one or more, or a RecordError that says why")
        for example in found:
            self._check(example)
        for key in adapter.unread(columns_of(record)):
            self.counts.unread_keys.setdefault(key, row)
        return found

    def _check(self, example: object) -> None:
        if not isinstance(example, Example):
            raise self._broken(f"returned {shorten(example)}; expected an Example")
        if isinstance(example, PreferenceExample):
            self._check(example.conversation("rejected"))
            example = example.conversation("chosen")
        for index, message in enumerate(example.messages):
            if not isinstance(message, Message):
                raise self._broken(f"returned messages[{index}]={shorten(message)}; expected a Message")
            for name in _TEXTS:
                if not isinstance(value := getattr(message, name), str):
                    raise self._broken(f"returned messages[{index}].{name}={shorten(value)}; expected text")

    def _group(self, record: Record) -> Hashable:
        try:
            if self.adapter is None:
                self.adapter = self._choose_adapter(record)
            return self.adapter.group(record)
        except RecordError:
            return None  # no adapter reads it: said, with its place, when its turn comes
        except TemplatekitError:
            raise
        except Exception as error:  # a plugin's code may raise anything
            assert self.adapter is not None
            raise PluginError(
                f"adapter {self.adapter.name!r}: group() raised {type(error).__name__}: {error}"
            ) from error

    def _choose_adapter(self, record: Record) -> Adapter:
        try:
            return choose_adapter(record.keys(), self.registry)
        except TemplatekitError:
            raise
        except Exception as error:  # a plugin's `matches` may raise anything
            raise PluginError(
                f"an adapter's matches() raised {type(error).__name__}: {error}; name the adapter to use (--adapter)"
            ) from error

    def _broken(self, what: str) -> RecordError:
        assert self.adapter is not None
        return RecordError(f"adapter {self.adapter.name!r} {what}", reason="adapter_failed")

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
            example = item.example
            try:
                if self.limit is not None:
                    long = len(tokenized)
                    example, tokenized = self.limit.fit(example, tokenized)
                    self.counts.shorten(tokenized, source, long)
            except RecordError as error:
                error.at(source, tokenized.row)
                if self.options.truncation == "error":
                    error.message += "; to drop: --truncation drop"
                    raise
                self.counts.drop(error)
                continue
            self.counts.tokens += len(tokenized)
            self.counts.trained_tokens += tokenized.trained_tokens
            yield replace(item, example=example, rendered=tokenized.rendered, tokenized=tokenized)


_TEXTS = ("role", "content", "context", "reasoning", "name", "tool_call_id")


def _copied(value: Any) -> Any:
    """A value with objects and lists of its own."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
