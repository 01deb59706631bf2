"""Records in, examples out: which records of a data set are read, and what the adapter makes of each."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from templatekit.config.options import DataOptions
from templatekit.errors import PluginError, RecordError, TemplatekitError, shorten
from templatekit.formats.lookup import choose_adapter
from templatekit.hooks.contracts import Adapter
from templatekit.hooks.registry import Registry
from templatekit.sources import open_source
from templatekit.sources.grouping import columns_of, gather
from templatekit.sources.shuffle import placed, shuffled
from templatekit.types import Example, Message, PreferenceExample, Record


class Reader:
    """The records that the options ask for, and their examples.

    Without an adapter the first record's keys choose one.
    """

    def __init__(self, options: DataOptions, registry: Registry, *, adapter: Adapter | None = None) -> None:
        self.options = options
        self.registry = registry
        self.adapter = adapter or (registry.adapters[options.adapter] if options.adapter else None)
        """None while none is named and no record has told it."""
        self._no_context = {text.strip().casefold() for text in options.empty_context}

    @property
    def adapter_name(self) -> str | None:
        """The name under which the registry has the adapter, `plugin:name` where two plugins offer one."""
        return next((name for name, one in self.registry.adapters.items() if one is self.adapter), None)

    def open(self) -> Iterator[Record | RecordError]:
        """The records of the options' data set."""
        return self.gathered(open_source(self.options.dataset, self.registry, columns=self.options.columns))

    def gathered(self, records: Iterable[Record | RecordError]) -> Iterator[Record | RecordError]:
        """At most `limit` of the records; those that make one example come together, as the adapter says."""
        return self._chosen(islice(gather(records, self._group), self.options.limit))

    def _chosen(self, records: Iterator[Record | RecordError]) -> Iterator[Record | RecordError]:
        """The records that the options leave, in the order they ask for; others stand in their place as `LeftOut`."""
        options = self.options
        if options.filter:
            from templatekit.config.expressions import Expression
            from templatekit.pipeline.filters import filtered

            records = filtered(records, [Expression(text) for text in options.filter])
        if options.dedup is not None:
            from templatekit.pipeline.deduplication import Item, texts_of, without_repeats

            items = (Item(record, row) for row, record in enumerate(records))
            kept = without_repeats(items, texts_of(options.dedup), lambda place, record: self.examples(record), str)
            records = (item.record for item in kept)
        if options.shuffle is not None:
            numbered = (placed(record, row) for row, record in enumerate(records))
            records = shuffled(numbered, seed=options.shuffle, buffer=options.shuffle_buffer)
        return records

    def examples(self, record: Record) -> list[Example]:
        """The adapter's examples of a record, one at least; raises `RecordError`."""
        adapter = self._adapter_for(record)
        try:
            # A copy: whatever a plugin does to its record, the caller's stays as it is.
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
        """What a record holds that the adapter does not read, by key; nothing while no adapter is known."""
        return self.adapter.unread(columns_of(record)) if self.adapter else {}

    def without_placeholders(self, example: Example) -> Example:
        """The example, contexts that the options name as meaning none (`<noinput>`) empty."""
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
            return None  # no adapter reads it: said, with its place, when its turn comes
        except TemplatekitError:
            raise
        except Exception as error:  # a plugin's code may raise anything
            raise PluginError(f"adapter {adapter.name!r}: group() raised {type(error).__name__}: {error}") from error

    def _adapter_for(self, record: Record) -> Adapter:
        """The adapter; where none is known yet the one that this record's keys choose, for all that follow too."""
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


_TEXTS = ("role", "content", "context", "reasoning", "name", "tool_call_id")


def _check(adapter: Adapter, example: object) -> None:
    """Raises `RecordError` where an adapter returns something else than examples whose texts are texts."""
    if not isinstance(example, Example):
        raise _broken(adapter, f"returned {shorten(example)}; expected an Example")
    if isinstance(example, PreferenceExample):
        _check(adapter, example.conversation("rejected"))
        example = example.conversation("chosen")
    for index, message in enumerate(example.messages):
        if not isinstance(message, Message):
            raise _broken(adapter, f"returned messages[{index}]={shorten(message)}; expected a Message")
        for name in _TEXTS:
            if not isinstance(value := getattr(message, name), str):
                raise _broken(adapter, f"returned messages[{index}].{name}={shorten(value)}; expected text")


def _broken(adapter: Adapter, what: str) -> RecordError:
    return RecordError(f"adapter {adapter.name!r} {what}", reason="adapter_failed")


def _copied(value: Any) -> Any:
    """A value with objects and lists of its own."""
    # Most values are texts, most objects are dicts. To ask each whether it is a `Mapping`, an abstract class, takes
    # 0.4 us more for an Alpaca record of three texts (0.26 us so, CPython 3.11).
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, Mapping)):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
