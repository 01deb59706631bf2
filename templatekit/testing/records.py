"""Strategies for conversations, and for records in the shape that an adapter reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hypothesis import strategies as st

from templatekit.errors import PluginError
from templatekit.hooks.contracts import Adapter
from templatekit.testing.adversarial import adversarial_text
from templatekit.types import Example, Message, PreferenceExample, Record

Text = st.SearchStrategy[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a format can express beside one turn of a user and an assistant."""

    turns: int = 1
    """The most turns that are tried."""
    system: bool = False
    context: bool = False
    reasoning: bool = False

    def __and__(self, other: Scope) -> Scope:
        return Scope(
            turns=min(self.turns, other.turns),
            system=self.system and other.system,
            context=self.context and other.context,
            reasoning=self.reasoning and other.reasoning,
        )

    def __str__(self) -> str:
        extras = [name for name in EXTRAS if getattr(self, name)]
        turns = "conversations" if self.turns > 1 else "one turn"
        return f"{turns}{f' with {_and(extras)}' if extras else ''}"


EVERYTHING = Scope(turns=3, system=True, context=True, reasoning=True)


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def examples(text: Text | None = None, *, system: bool = False, context: bool = True) -> st.SearchStrategy[Example]:
    """One turn: a question, with a context and a system message where they are asked for, and an answer."""
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
    """Conversations that end with an assistant's answer; each text is drawn from `text`."""
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


def within(scope: Scope, text: Text, *, min_turns: int = 1) -> st.SearchStrategy[Example]:
    """Conversations with everything that a format takes."""
    return conversations(
        text,
        system=scope.system,
        context=scope.context,
        reasoning=scope.reasoning,
        min_turns=min_turns,
        max_turns=scope.turns,
    )


class Place(NamedTuple):
    """Where a text of a record stands, and the role of the message that it becomes part of; "" for none that is
    rendered, such as a rejected answer."""

    path: tuple[Any, ...]
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The records that an adapter reads."""

    scope: Scope | None
    """What its `to_record` writes and its `to_example` reads again; None where it does not write."""
    records: tuple[Record, ...]
    """Some that it reads: its own examples, and the shortest that it writes, or else texts under its keys."""
    more: tuple[str, ...]
    """Keys that may stand in the first of them as well, with any text."""
    fewer: tuple[str, ...]
    """Keys of it that may be left out."""
    places: tuple[tuple[tuple[Any, ...], ...], ...]
    """The paths of each record's texts."""


Accepts = Callable[[Record], object]
"""Raises for records that are of no use."""


def shape_of(adapter: Adapter, accepts: Accepts | None = None) -> Shape:
    """Tries an adapter on its own examples and on short records; `PluginError` where it reads none."""
    accepts = accepts or adapter.to_example
    scope, why = _written(adapter, accepts)
    records = [record for record in adapter.example_records if _why_not(accepts, record) is None]
    if scope is not None:
        records.append(adapter.to_record(short_example(Scope(context=scope.context))))
    if not records:
        flat = {key: f"some {key}" for key in adapter.required or adapter.keys}
        said = _why_not(accepts, flat) if flat else "it names none"
        if said is not None:
            raise PluginError(
                f"adapter {adapter.name!r}: no record of its shape is known: to_record(example) does not give one that "
                f"to_example reads as the same messages ({why}), and it does not take a text under each of its keys "
                f"({said}); write to_record, or give some in example_records"
            )
        records.append(flat)
    first = records[0]
    known = {key for record in records for path in paths_of(record) for key in path}
    more = [
        key for key in adapter.keys if key not in known and _why_not(accepts, {**first, key: f"some {key}"}) is None
    ]
    fewer = [key for key in first if _why_not(accepts, {k: v for k, v in first.items() if k != key}) is None]
    places = (tuple(place.path for place in places_of(adapter, record)) for record in records)
    return Shape(scope=scope, records=tuple(records), more=tuple(more), fewer=tuple(fewer), places=tuple(places))


def records_for(adapter: Adapter, text: Text | None = None) -> st.SearchStrategy[Record]:
    """Records of an adapter's shape with texts drawn from `text`: adversarial ones if left out.

    They are what its `to_record` makes of generated conversations, and its `example_records` (where it has neither, a
    record with a text under each key) with other texts in them. Optional keys come and go. Raises `PluginError` where
    none of this gives a record that the adapter reads.
    """
    return records_of(adapter, shape_of(adapter), adversarial_text() if text is None else text)


def records_of(
    adapter: Adapter, shape: Shape, text: Text, scope: Scope = EVERYTHING, *, min_turns: int = 1
) -> st.SearchStrategy[Record]:
    """Records of a known shape, of conversations with no more than `scope`."""
    filled = [_filled(record, paths, text) for record, paths in zip(shape.records, shape.places, strict=True)]
    others = st.fixed_dictionaries({}, optional=dict.fromkeys(shape.more, text))
    fewer = st.sets(st.sampled_from(shape.fewer)) if shape.fewer else st.just(set[str]())
    changed = st.builds(lambda record, other, left: _without({**record, **other}, left), filled[0], others, fewer)
    if shape.scope is None:
        return st.one_of(*filled, changed)
    written = within(shape.scope & scope, text, min_turns=min_turns).map(adapter.to_record)
    return written if min_turns > 1 else st.one_of(written, *filled[:-1], changed)


def _filled(record: Record, paths: Sequence[tuple[Any, ...]], text: Text) -> st.SearchStrategy[Record]:
    """The record with other texts in all of its places."""

    def fill(texts: list[str]) -> Record:
        changed = record
        for path, each in zip(paths, texts, strict=True):
            changed = with_text(changed, path, each)
        return changed

    return st.lists(text, min_size=len(paths), max_size=len(paths)).map(fill)


def places_of(adapter: Adapter, record: Record) -> list[Place]:
    """The places of the texts that an adapter takes as they are: found by putting a text of its own there."""
    found = []
    for path in paths_of(record):
        if not isinstance(at(record, path), str):
            continue
        try:
            read = list(adapter.to_examples(with_text(record, path, STRANGE)))
        except Exception:  # no place for any text, such as a role's
            continue
        messages = [message for example in read for message in _rendered(example).messages]
        roles = [message.role for message in messages if STRANGE in repr(message)]
        if STRANGE not in roles and STRANGE in repr(read):
            found.append(Place(path, roles[0] if roles else ""))
    return found


STRANGE = "qzx7qzx"
"""A text that no record holds."""


def conversations_of(adapter: Adapter, record: Record) -> list[Example]:
    """What is rendered of a record: of a preference pair the chosen conversation."""
    return [_rendered(example) for example in adapter.to_examples(copy.deepcopy(record))]


def _rendered(example: Example) -> Example:
    return example.conversation("chosen") if isinstance(example, PreferenceExample) else example


def texts_read(adapter: Adapter, record: Record) -> list[str]:
    """Every text of the examples that an adapter makes of a record, wherever it stands."""
    return [text for example in adapter.to_examples(copy.deepcopy(record)) for text in texts_of(example)]


def texts_of(value: Message | Example) -> list[str]:
    """Every text of an example or a message."""
    fields = asdict(value)
    return [text for path in paths_of(fields) if isinstance(text := at(fields, path), str)]


def with_text(record: Record, path: tuple[Any, ...], text: Any) -> Record:
    """The record with another text, or anything, in one place; `...` takes what stands there away."""
    changed: Any = copy.deepcopy(record)
    inner = at(changed, path[:-1])
    if text is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = text
    return dict(changed)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a JSON value, from the outside in."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, item in items:
        yield (*path, key)
        yield from paths_of(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a path."""
    for key in path:
        value = value[key]
    return value


def _without(record: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def _written(adapter: Adapter, accepts: Accepts) -> tuple[Scope | None, str]:
    """What the adapter can write, and why it cannot write the simplest conversation."""
    why = _not_back(adapter, accepts, Scope())
    if why:
        return None, why
    turns = 1 if _not_back(adapter, accepts, Scope(turns=2)) else 3
    extras = {name: not _not_back(adapter, accepts, Scope(**{name: True})) for name in EXTRAS}
    return Scope(turns=turns, **extras), ""


EXTRAS = ("system", "context", "reasoning")


def _not_back(adapter: Adapter, accepts: Accepts, scope: Scope) -> str | None:
    """Why a short conversation is not there and back again; None where it is."""
    example = short_example(scope)
    try:
        record = adapter.to_record(example)
        back = adapter.to_example(copy.deepcopy(record))
    except Exception as error:  # a plugin's code may raise anything
        return f"{type(error).__name__}: {error}"
    if back.messages != example.messages:
        return f"it gave {back.messages}"
    return _why_not(accepts, record)


def _why_not(accepts: Accepts, record: Record) -> str | None:
    try:
        accepts(copy.deepcopy(record))
    except Exception as error:  # as above
        return f"{type(error).__name__}: {error}"
    return None


def short_example(scope: Scope) -> Example:
    """One with all that a format takes."""
    user = Message(role="user", content="ask", context="facts" if scope.context else "")
    answer = Message(role="assistant", content="answer", reasoning="thoughts" if scope.reasoning else "")
    return _conversation(
        Message(role="system", content="rule") if scope.system else None, [(user, answer)] * scope.turns
    )
