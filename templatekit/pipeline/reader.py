"""`Reader`: which records of a data set are read, and the examples that the adapter makes of each."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from templatekit.config.data_options import DataOptions
from templatekit.config.filter_expression import FilterExpression
from templatekit.errors import ExcludedRecord, PluginError, RecordError, TemplatekitError, shorten
from templatekit.formats.lookup import choose_adapter
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.record_fields import check_arguments
from templatekit.hooks.registry import Registry
from templatekit.sources import map_columns, open_source
from templatekit.sources.grouping import columns_of, group_records
from templatekit.sources.limits import MEGABYTE, Limits, told_size
from templatekit.sources.shuffle import shuffled, with_row
from templatekit.types import Example, Message, PreferenceExample, Record

_MAX_UNREAD, _MAX_KEY = 40, 80
"""How many keys of a record are named that the adapter does not read, and how many characters of each."""


class Reader:
    """The records that the options ask for, and their examples.

    Without a named adapter, the first record's keys choose one.
    """

    def __init__(self, options: DataOptions, registry: Registry, *, adapter: Adapter | None = None) -> None:
        self.options = options
        self.registry = registry
        self.adapter = adapter or (registry.adapters[options.adapter] if options.adapter else None)
        """None until it is named or the first record has shown it."""
        self._no_context = {text.strip().casefold() for text in options.empty_context}

    @property
    def adapter_name(self) -> str | None:
        """The adapter's name in the registry: `plugin:name` where two plugins offer one of that name."""
        return next((name for name, offered in self.registry.adapters.items() if offered is self.adapter), None)

    def open(self, records: Iterable[Any] | None = None) -> Iterator[Record | RecordError]:
        """The records of the options' data set, or a caller's own, with columns renamed; see `select`."""
        if records is None:
            limits = Limits(record=self.options.max_record_size * MEGABYTE)
            records = open_source(self.options.dataset, self.registry, columns=self.options.columns, limits=limits)
        else:
            records = _rename_columns(records, self.options.columns)
        return self.select(records)

    def select(self, records: Iterable[Record | RecordError]) -> Iterator[Record | RecordError]:
        """At most `limit` of the records, filtered, without duplicates and shuffled as the options say.

        An `ExcludedRecord` takes the place of each excluded one. Records that make one example come as one record.
        """
        options = self.options
        records = islice(group_records(records, self._group), options.limit)
        if options.filter:
            conditions = [FilterExpression(text) for text in options.filter]
            records = (_check_conditions(record, conditions) for record in records)
        if options.dedup is not None:
            from templatekit.pipeline.deduplication import IdentifiedRecord, create_text_index, mark_duplicates

            identified = (IdentifiedRecord(record, row) for row, record in enumerate(records))
            index = create_text_index(options.dedup)
            marked = mark_duplicates(identified, index, lambda row, record: self.examples(record), str)
            records = (item.record for item in marked)
        if options.shuffle is not None:
            numbered = (with_row(record, row) for row, record in enumerate(records))
            records = shuffled(numbered, seed=options.shuffle, buffer=options.shuffle_buffer, bytes_of=told_size)
        return records

    def examples(self, record: Record) -> list[Example]:
        """The examples that the adapter makes of a record, at least one; raises `RecordError`."""
        adapter = self._adapter_for(record)
        try:
            # A copy, so that a plugin that changes its record does not change the caller's.
            found = list(adapter.to_examples({key: _copied(value) for key, value in record.items()}))
        except TemplatekitError:
            raise
        except (Exception, SystemExit) as error:  # a plugin's code may raise anything
            raise _broken(adapter, f"raised {type(error).__name__}: {error}") from error
        if not found:
            raise _broken(adapter, "returned no example; expected one or more, or a RecordError that says why")
        for example in found:
            _check(adapter, example)
        return found

    def unread(self, record: Record) -> dict[str, Any]:
        """The values of a record that the adapter does not read, by key; empty until the adapter is known.

        A record may have any number of keys, of any length: these are shortened, and after the first ones a single key
        says how many more there are.
        """
        unread = self.adapter.unread(columns_of(record)) if self.adapter else {}
        if len(unread) <= _MAX_UNREAD and all(_shortened(key) is key for key in unread):
            return unread
        named = {_shortened(key): value for key, value in islice(unread.items(), _MAX_UNREAD)}
        more = len(unread) - _MAX_UNREAD
        return named | ({f"… and {more:,} more": None} if more > 0 else {})

    def without_placeholders(self, example: Example) -> Example:
        """The example with an empty context in place of each placeholder that the options name, such as `<noinput>`."""
        if not self._no_context:
            return example
        messages = tuple(
            replace(message, context="") if message.context.strip().casefold() in self._no_context else message
            for message in example.messages
        )
        return replace(example, messages=messages)

    def _group(self, record: Record) -> Hashable:
        try:
            adapter = self._adapter_for(record)
            return adapter.group(record)
        except RecordError:
            return None  # no adapter reads it; the pipeline reports that later, with the row
        except TemplatekitError:
            raise
        except Exception as error:  # a plugin's code may raise anything
            raise PluginError(f"adapter {adapter.name!r}: group() raised {type(error).__name__}: {error}") from error

    def _adapter_for(self, record: Record) -> Adapter:
        """The adapter. If none is known yet, this record's keys choose it, for all later records too."""
        if self.adapter is None:
            try:
                self.adapter = choose_adapter(record.keys(), self.registry)
            except TemplatekitError:
                raise
            except Exception as error:  # a plugin's `matches` may raise anything
                raise PluginError(
                    f"an adapter's matches() raised {type(error).__name__}: {error}; "
                    "name the adapter to use (--adapter)"
                ) from error
        return self.adapter


def _rename_columns(records: Iterable[object], columns: Mapping[str, str]) -> Iterator[Record | RecordError]:
    for record in records:
        if not isinstance(record, Mapping):
            yield RecordError(f"found {shorten(record)}; expected a mapping with named fields", reason="not_an_object")
            continue
        try:
            yield map_columns(record, columns)
        except RecordError as error:
            yield error


def _check_conditions(record: Record | RecordError, conditions: Sequence[FilterExpression]) -> Record | RecordError:
    """The record; an `ExcludedRecord` if it fails a condition.

    A `RecordError` that names the condition replaces a record on which it cannot be evaluated.
    """
    if isinstance(record, RecordError):
        return record
    for condition in conditions:
        try:
            if not condition.holds(columns_of(record)):
                return ExcludedRecord(f"not {condition.text}", reason="filtered")
        except ValueError as error:
            return RecordError(f"filter {condition.text!r}: {error}", reason="filter_failed")
    return record


def _shortened(key: str) -> str:
    return key if not isinstance(key, str) or len(key) <= _MAX_KEY else f"{key[: _MAX_KEY - 1]}…"


_TEXT_FIELDS = ("role", "content", "context", "reasoning", "name", "tool_call_id")


def _check(adapter: Adapter, example: object) -> None:
    """Raise `RecordError` where an adapter returns anything but examples whose text fields are strings.

    And where a tool call, trained or not, has arguments that no server accepts.
    """
    if not isinstance(example, Example):
        raise _broken(adapter, f"returned {shorten(example)}; expected an Example")
    if isinstance(example, PreferenceExample):
        _check(adapter, example.conversation("rejected"))
        example = example.conversation("chosen")
    for index, message in enumerate(example.messages):
        if not isinstance(message, Message):
            raise _broken(adapter, f"returned messages[{index}]={shorten(message)}; expected a Message")
        for name in _TEXT_FIELDS:
            if not isinstance(value := getattr(message, name), str):
                raise _broken(adapter, f"returned messages[{index}].{name}={shorten(value)}; expected text")
        for number, call in enumerate(message.tool_calls):
            if not isinstance(call, Mapping):
                raise _broken(adapter, f"returned messages[{index}].tool_calls={shorten(call)}; expected objects")
            check_arguments(call, f"messages[{index}].tool_calls[{number}]")


def _broken(adapter: Adapter, what: str) -> RecordError:
    return RecordError(f"adapter {adapter.name!r} {what}", reason="adapter_failed")


def _copied(value: Any) -> Any:
    """A copy of a value, of its dictionaries and lists too."""
    # The common types come first: `isinstance(value, Mapping)`, an abstract class, takes 0.4 us more for an Alpaca
    # record of three texts, which takes 0.26 us like this (CPython 3.11).
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, Mapping)):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
