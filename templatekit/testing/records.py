"""Strategies for conversations, and for records in the shape that an adapter reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hypothesis import strategies as st

from templatekit.errors import PluginError
from templatekit.hooks.contracts import Adapter
from templatekit.testing.texts import adversarial_text
from templatekit.types import Example, Message, PreferenceExample, Record

Text = st.SearchStrategy[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a format can express in a conversation, besides one turn of a user and an assistant."""

    max_turns: int = 1
    """The maximum number of turns that are tried."""
    system: bool = False
    context: bool = False
    reasoning: bool = False

    def __and__(self, other: Scope) -> Scope:
        ours, theirs = asdict(self), asdict(other)
        return Scope(**{name: min(ours[name], theirs[name]) for name in ours})

    def __str__(self) -> str:
        parts = [name for name in OPTIONAL_PARTS if getattr(self, name)]
        turns = "conversations" if self.max_turns > 1 else "one turn"
        listed = " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
        return f"{turns} with {listed}" if listed else turns


def examples(text: Text | None = None, *, system: bool = False, context: bool = True) -> st.SearchStrategy[Example]:
    """Conversations of one turn: a question and an answer, optionally with a context and a system message."""
    return conversations(text, system=system, context=context, max_turns=1)


def conversations(
    text: Text | None = None,
    *,
    system: bool = True,
    context: bool = False,
    reasoning: bool = False,
    min_turns: int = 1,
    max_turns: int = 3,
) -> st.SearchStrategy[Example]:
    """Conversations that end with an answer of the assistant; each text is drawn from `text`."""
    text = adversarial_text() if text is None else text
    none = st.just("")
    user = st.builds(Message, role=st.just("user"), content=text, context=none | text if context else none)
    thoughts = none | text if reasoning else none
    assistant = st.builds(Message, role=st.just("assistant"), content=text, reasoning=thoughts)
    turns = st.lists(st.tuples(user, assistant), min_size=min_turns, max_size=max_turns)
    before = st.none() | st.builds(Message, role=st.just("system"), content=text) if system else st.none()
    return st.builds(_conversation, before, turns)


def _conversation(system: Message | None, turns: list[tuple[Message, Message]]) -> Example:
    messages = [message for turn in turns for message in turn]
    return Example(messages=tuple([system, *messages] if system else messages))


class TextLocation(NamedTuple):
    """The location of a text in a record."""

    path: tuple[Any, ...]
    role: str
    """The role of the message that contains the text; "" for a text that is not rendered, such as a rejected answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordShape:
    """The shape of the records that an adapter reads."""

    scope: Scope | None
    """The conversations that `to_record` writes and `to_example` reads again; None if the adapter does not write."""
    records: tuple[Record, ...]
    """Records that it reads: its `example_records` and the shortest that it writes, or texts under its keys."""
    text_paths: tuple[tuple[tuple[Any, ...], ...], ...]
    """For each record the paths of its texts."""
    additional_keys: tuple[str, ...] = ()
    """Keys that may be added to the first record, with any text."""
    optional_keys: tuple[str, ...] = ()
    """Keys that may be removed from the first record."""


RecordValidator = Callable[[Record], object]
"""Raises an exception for records that cannot be used."""


def record_shape(adapter: Adapter, validate: RecordValidator | None = None) -> RecordShape:
    """Find the shape of an adapter's records, by trying its `example_records` and short records.

    Raises `PluginError` if the adapter reads none of them.
    """
    validate = validate or adapter.to_example
    scope, reason = _writable_scope(adapter, validate)
    records = [record for record in adapter.example_records if _rejection(validate, record) is None]
    if scope is not None:
        records.append(adapter.to_record(short_example(Scope(context=scope.context))))
    if not records:
        flat = {key: f"some {key}" for key in adapter.required or adapter.keys}
        rejection = _rejection(validate, flat) if flat else "it names none"
        if rejection is not None:
            raise PluginError(
                f"adapter {adapter.name!r}: no record of its shape is known: to_record(example) does not give one that "
                f"to_example reads as the same messages ({reason}), and it does not take a text under each of its keys "
                f"({rejection}); write to_record, or give some in example_records"
            )
        records.append(flat)
    first = records[0]
    known = {key for record in records for path in paths_of(record) for key in path}
    additional = [
        key for key in adapter.keys if key not in known and _rejection(validate, {**first, key: f"some {key}"}) is None
    ]
    optional = [key for key in first if _rejection(validate, {k: v for k, v in first.items() if k != key}) is None]
    paths = (tuple(location.path for location in text_locations(adapter, record)) for record in records)
    return RecordShape(
        scope=scope,
        records=tuple(records),
        additional_keys=tuple(additional),
        optional_keys=tuple(optional),
        text_paths=tuple(paths),
    )


def records_for(adapter: Adapter, text: Text | None = None) -> st.SearchStrategy[Record]:
    """Records that an adapter reads, with texts drawn from `text` (by default adversarial texts).

    They are generated conversations written by its `to_record`, and its `example_records` with other texts. For an
    adapter that has neither, they are records with a text under each key. Optional keys are sometimes left out. Raises
    `PluginError` if the adapter reads no such record.
    """
    shape = record_shape(adapter)
    return records_of(adapter, shape, adversarial_text() if text is None else text, shape.scope or Scope())


def records_of(
    adapter: Adapter, shape: RecordShape, text: Text, scope: Scope, *, min_turns: int = 1
) -> st.SearchStrategy[Record]:
    """Records of a known shape, of conversations within `scope`."""
    filled = [_filled(record, paths, text) for record, paths in zip(shape.records, shape.text_paths, strict=True)]
    added = st.fixed_dictionaries({}, optional=dict.fromkeys(shape.additional_keys, text))
    removed = st.sets(st.sampled_from(shape.optional_keys)) if shape.optional_keys else st.just(set[str]())
    changed = st.builds(
        lambda record, new, absent: {key: value for key, value in {**record, **new}.items() if key not in absent},
        filled[0],
        added,
        removed,
    )
    if shape.scope is None:
        return st.one_of(*filled, changed)
    written = conversations(text, min_turns=min_turns, **asdict(scope)).map(adapter.to_record)
    return written if min_turns > 1 else st.one_of(written, *filled[:-1], changed)


def _filled(record: Record, paths: Sequence[tuple[Any, ...]], text: Text) -> st.SearchStrategy[Record]:
    """The record with other texts at all paths."""
    texts = st.lists(text, min_size=len(paths), max_size=len(paths))
    return texts.map(lambda drawn: with_values(record, zip(paths, drawn, strict=True)))


def text_locations(adapter: Adapter, record: Record) -> list[TextLocation]:
    """The locations of the texts that an adapter reads unchanged, found by putting a probe text at each path."""
    found = []
    for path in paths_of(record):
        if not isinstance(value_at(record, path), str):
            continue
        try:
            read = list(adapter.to_examples(with_value(record, path, PROBE_TEXT)))
        except Exception:  # not every text is allowed there, for example in a role
            continue
        messages = [message for example in read for message in _rendered(example).messages]
        roles = [message.role for message in messages if PROBE_TEXT in repr(message)]
        if PROBE_TEXT not in roles and PROBE_TEXT in repr(read):
            found.append(TextLocation(path, roles[0] if roles else ""))
    return found


PROBE_TEXT = "qzx7qzx"
"""A text that no record contains."""


def conversations_of(adapter: Adapter, record: Record) -> list[Example]:
    """The conversations of a record that are rendered; of a preference pair the chosen one."""
    return [_rendered(example) for example in adapter.to_examples(copy.deepcopy(record))]


def _rendered(example: Example) -> Example:
    return example.conversation("chosen") if isinstance(example, PreferenceExample) else example


def texts_read(adapter: Adapter, record: Record) -> list[str]:
    """Every text in the examples that an adapter reads from a record."""
    read = [asdict(example) for example in adapter.to_examples(copy.deepcopy(record))]
    return [text for path in paths_of(read) if isinstance(text := value_at(read, path), str)]


def with_value(record: Record, path: tuple[Any, ...], value: Any) -> Record:
    """A copy of the record with another value at a path; the value `...` removes the entry."""
    changed: Any = copy.deepcopy(record)
    inner = value_at(changed, path[:-1])
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return dict(changed)


def with_values(record: Record, values: Iterable[tuple[tuple[Any, ...], Any]]) -> Record:
    """A copy of the record with other values, given with their paths."""
    for path, value in values:
        record = with_value(record, path, value)
    return record


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value, outer ones first."""
    items: Iterable[tuple[Any, Any]] = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in value.items() if isinstance(value, Mapping) else items:
        yield (*path, key)
        yield from paths_of(item, (*path, key))


def value_at(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def _writable_scope(adapter: Adapter, validate: RecordValidator) -> tuple[Scope | None, str]:
    """The conversations that the adapter can write; None and the reason if it cannot write the simplest one."""
    reason = _round_trip_failure(adapter, validate, Scope())
    if reason:
        return None, reason
    max_turns = 1 if _round_trip_failure(adapter, validate, Scope(max_turns=2)) else 3
    parts = {name: not _round_trip_failure(adapter, validate, Scope(**{name: True})) for name in OPTIONAL_PARTS}
    return Scope(max_turns=max_turns, **parts), ""


OPTIONAL_PARTS = ("system", "context", "reasoning")


def _round_trip_failure(adapter: Adapter, validate: RecordValidator, scope: Scope) -> str | None:
    """How writing and reading changes a short conversation; None if it stays the same."""
    example = short_example(scope)
    try:
        record = adapter.to_record(example)
        back = adapter.to_example(copy.deepcopy(record))
    except Exception as error:  # a plugin's code may raise anything
        return f"{type(error).__name__}: {error}"
    if back.messages != example.messages:
        return f"it gave {back.messages}"
    return _rejection(validate, record)


def _rejection(validate: RecordValidator, record: Record) -> str | None:
    try:
        validate(copy.deepcopy(record))
    except Exception as error:  # a plugin's code may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def short_example(scope: Scope) -> Example:
    """A short conversation with everything that a scope allows."""
    user = Message(role="user", content="ask", context="facts" if scope.context else "")
    answer = Message(role="assistant", content="answer", reasoning="thoughts" if scope.reasoning else "")
    return _conversation(
        Message(role="system", content="rule") if scope.system else None, [(user, answer)] * scope.max_turns
    )
