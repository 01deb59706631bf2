"""How a template writes tool calls, found in three steps by rendering small answers.

The steps ask whether it writes one object for a whole call, or for all; else one object for the arguments; else every
argument by itself. In the last case, a number shows what stands around a value, and other values show the notation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from templatekit.formats.answers.grammar import CallObject, Node, Path
from templatekit.formats.answers.notation import JSON, PYTHON, Notation, loose_value
from templatekit.hooks.record_fields import as_function
from templatekit.types import Message

_CONTENT, _THOUGHT = "Contentprobe", "Thoughtprobe"
NAMES = ("probe_one", "probe_two", "probe_three")
KEYS = ("key_one", "key_two", "key_three", "key_four")
VALUES = ("Valueone", "Valuetwo", "Valuethree", "Valuefour")
NUMBER_VALUE = 1234567
_OTHER_VALUES: tuple[Any, ...] = (
    "a \\ b",
    "a 'b' \"c\" \\ d",
    1.5,
    True,
    None,
    {"inner": "Innerprobe", "number": 7},
    ["Itemprobe", 8],
)

Arguments: TypeAlias = Mapping[str, Any]
Field: TypeAlias = tuple[Node, int, int]
"""A field of an answer, with its start and end in the text."""


class Written(NamedTuple):
    """What a template writes for an answer."""

    prompt: str
    """What it writes in the prompt behind the text of the last message."""
    text: str
    """The answer, from the generation boundary to the end marker."""


WriteFunction: TypeAlias = Callable[[Message], Written | None]
"""Writes an answer; None if the template refuses it."""


def short_answer(*, content: bool = True, thought: bool = False, calls: Sequence[Mapping[str, Any]] = ()) -> Message:
    """An answer whose fields are words that stand nowhere else."""
    return Message(
        role="assistant",
        content=_CONTENT if content else "",
        reasoning=_THOUGHT if thought else "",
        tool_calls=tuple(calls),
    )


def call_of(name: str, arguments: Arguments, id: str) -> Mapping[str, Any]:
    """A tool call."""
    return as_function({"id": id, "name": name, "arguments": arguments})


def text_fields(text: str, answer: Message) -> list[Field] | None:
    """Where the reasoning and the content stand; None if one of them stands there more than once, or not at all."""
    found: list[Field] = []
    fields: tuple[tuple[Node, str], ...] = (("reasoning", answer.reasoning), ("content", answer.content))
    for node, word in fields:
        if word:
            if text.count(word) != 1:
                return None
            start = text.index(word)
            found.append((node, start, start + len(word)))
    return sorted(found, key=lambda field: field[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How a template writes calls."""

    kind: str
    """`call`, `calls`, `arguments` or `each`."""
    values: Notation | None = JSON
    object: CallObject | None = None
    id_holds_name: bool = False
    before_value: str = ""
    """What stands between a key and a number."""
    marks_texts: bool = False
    """Whether texts stand between other literals than numbers."""

    def id(self, name: str, index: int) -> str:
        """The id of the index-th call. Mistral's templates ask for nine letters and digits."""
        return f"functions.{name}:{index}" if self.id_holds_name else f"call{index:05d}"

    def call(self, index: int, arguments: Arguments) -> Mapping[str, Any]:
        """A call of the index-th name."""
        return call_of(NAMES[index], arguments, self.id(NAMES[index], index))

    @classmethod
    def of(cls, write: WriteFunction) -> CallForm | str:
        """The form of one template, or why it is not known; empty if the template writes no calls."""
        why = ""
        for form in (cls(kind=""), cls(kind="", id_holds_name=True)):
            call = form.call(0, {KEYS[0]: VALUES[0]})
            written = write(short_answer(content=False, calls=[call]))
            if written is None:
                continue
            text = written.text
            if form.id_holds_name and form.id(NAMES[0], 0) not in text:
                continue
            if not form.id_holds_name and NAMES[0] not in text:
                why = "the template writes no names of functions"
                continue
            found = form._with_object(text) or form._with_arguments(text) or form._with_each(write)
            if found is not None:
                return found
            why = "arguments are written in no form that is known"
        return why

    def _with_object(self, text: str) -> CallForm | None:
        """The form, if one object of JSON holds the name and the arguments."""
        name, value = text.index(NAMES[0]), text.find(VALUES[0])
        if value < 0 or self.id_holds_name:
            return None
        for start in (i for i, sign in enumerate(text[:name]) if sign in "[{"):
            try:
                found, end = JSON.read(text, start)
            except ValueError:
                continue
            if end <= max(name, value):
                continue
            call = found[0] if isinstance(found, list) and found else found
            path = _path_to(call, lambda item: item == NAMES[0])
            arguments = _path_to(call, lambda item: _same_object(item, {KEYS[0]: VALUES[0]}))
            if not path or not arguments or not isinstance(call, dict):
                return None
            place = CallObject(
                name=path,
                arguments=arguments,
                id=_path_to(call, lambda item: item == self.id(NAMES[0], 0)) or None,
                first_key=next(iter(call)),
            )
            return replace(self, kind="calls" if isinstance(found, list) else "call", object=place)
        return None

    def _with_arguments(self, text: str) -> CallForm | None:
        """The form, if one object holds the arguments."""
        for notation in (JSON, PYTHON):
            if _object_with(text, {KEYS[0]: VALUES[0]}, notation, 0) is not None:
                return replace(self, kind="arguments", values=notation)
        return None

    def _with_each(self, write: WriteFunction) -> CallForm | None:
        """The form, if every argument is written by itself."""

        def written_with(value: Any) -> str | None:
            found = write(short_answer(content=False, calls=[self.call(0, {KEYS[0]: value})]))
            if found is None or found.text.count(KEYS[0]) != 1:
                return None
            return found.text[found.text.index(KEYS[0]) + len(KEYS[0]) :]

        with_number = written_with(NUMBER_VALUE)
        sign = str(NUMBER_VALUE)
        if with_number is None:  # a template of texts alone
            with_number, sign = written_with(VALUES[0]), VALUES[0]
        if with_number is None or with_number.count(sign) != 1:
            return None
        before, after = with_number.split(sign)
        written: list[tuple[Any, str]] = []
        marks_texts = False
        for value in (VALUES[0], *_OTHER_VALUES):
            if (text := written_with(value)) is None:
                continue
            if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
                written.append((value, text[len(before) : len(text) - len(after)]))
            elif value == VALUES[0] and text.count(value) == 1:
                marks_texts = True
        form = replace(self, kind="each", before_value=before, marks_texts=marks_texts)
        best, count = _best_notation(written)
        others = [pair for pair in written if not isinstance(pair[0], str)]
        if count < len(written) and others and len({_quotes(*pair) for pair in written if pair not in others}) == 1:
            # Texts stand between quotes as they are, whatever they hold: the quotes belong to the literals.
            return replace(form, values=_best_notation(others)[0], marks_texts=True)
        if not marks_texts and not _reads(best, *written[0]):
            return None
        return replace(form, values=best)

    def fields(self, text: str, answer: Message) -> list[Field] | None:
        """Where the fields of an answer stand in its text; None if that is not clear."""
        found = text_fields(text, answer)
        if found is None:
            return None
        position = max((end for node, _, end in found if node == "content"), default=0)
        if self.kind in ("call", "calls"):
            return self._objects(text, answer, found)
        for index, call in enumerate(answer.tool_calls):
            words: tuple[tuple[Node, str], ...] = (("id", self.id(NAMES[index], index)), ("name", NAMES[index]))
            for node, word in words:
                if node == "name" and self.id_holds_name:
                    continue
                if text.count(word) == 1:
                    found.append((node, text.index(word), text.index(word) + len(word)))
                elif node == "name":
                    return None
            arguments = call["function"]["arguments"]
            if self.kind == "arguments":
                span = _object_with(text, arguments, self.values or JSON, position)
                if span is None:
                    return None
                found.append(("arguments", *span))
                position = span[1]
                continue
            for key, value in arguments.items():
                if text.count(key) != 1:
                    return None
                start = text.index(key)
                found.append(("key", start, start + len(key)))
                if (span := self._value(text, start + len(key), value)) is None:
                    return None
                found.append(("string" if isinstance(value, str) and self.marks_texts else "value", *span))
        return sorted(found, key=lambda field: field[1])

    def _value(self, text: str, start: int, value: Any) -> tuple[int, int] | None:
        """Where a value stands, which is written behind its key."""
        if isinstance(value, str) and (self.marks_texts or self.values is None):
            found = text.find(value, start)
            return (found, found + len(value)) if found >= 0 else None
        start += len(self.before_value)
        if self.values is None:
            word = str(value)
            return (start, start + len(word)) if text.startswith(word, start) else None
        try:
            read = self.values.read(text, start)
        except (ValueError, IndexError):
            return None
        return (start, read.end) if read.value == value else None

    def _objects(self, text: str, answer: Message, found: list[Field]) -> list[Field] | None:
        if self.kind == "calls":
            first = text.find(NAMES[0])
            for start in (i for i, sign in enumerate(text[:first]) if sign == "["):
                try:
                    calls, end = JSON.read(text, start)
                except ValueError:
                    continue
                if end > first and isinstance(calls, list) and len(calls) == len(answer.tool_calls):
                    return sorted([*found, ("calls", start, end)], key=lambda field: field[1])
            return None
        for index in range(len(answer.tool_calls)):
            name = text.find(NAMES[index])
            for start in (i for i, sign in enumerate(text[: max(0, name)]) if sign == "{"):
                try:
                    _, end = JSON.read(text, start)
                except ValueError:
                    continue
                if end > name:
                    found.append(("call", start, end))
                    break
            else:
                return None
        return sorted(found, key=lambda field: field[1])


def _path_to(value: Any, is_meant: Callable[[Any], bool]) -> Path:
    """The keys that lead to a part of an object; empty if there is none."""
    if isinstance(value, dict):
        for key, item in value.items():
            if is_meant(item):
                return (key,)
            if path := _path_to(item, is_meant):
                return (key, *path)
    return ()


def _same_object(value: Any, expected: Arguments) -> bool:
    if isinstance(value, str) and value[:1] == "{":
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return bool(value == expected)


def _object_with(text: str, expected: Arguments, notation: Notation, position: int) -> tuple[int, int] | None:
    """Where an object with these arguments stands."""
    while (start := text.find("{", position)) >= 0:
        try:
            found, end = notation.read(text + "\n", start)
        except (ValueError, IndexError):
            found, end = None, 0
        if found == expected:
            return start, end
        position = start + 1
    return None


def _best_notation(written: Sequence[tuple[Any, str]]) -> tuple[Notation | None, int]:
    """The notation that reads the most of these values, and how many; of equal ones, one that ends values itself."""
    counts = {notation: sum(_reads(notation, *pair) for pair in written) for notation in _notations(written)}
    return max(counts.items(), key=lambda item: (item[1], item[0] is not None))


def _quotes(value: str, text: str) -> tuple[str, str] | None:
    """What stands around a text that is written as it is; None if nothing does, or the text is changed."""
    before, found, after = text.partition(value)
    return (before, after) if found and before and after else None


def _notations(written: Sequence[tuple[Any, str]]) -> Iterator[Notation | None]:
    yield from (None, JSON, PYTHON)
    for value, text in written:
        if isinstance(value, str) and value in text:
            before, _, after = text.partition(value)
            if before and before == after:
                yield Notation(quote=before, escapes=False, bare_keys=True)
                yield Notation(quote=before, escapes=True, bare_keys=True)


def _reads(notation: Notation | None, value: Any, text: str) -> bool:
    """Whether a notation reads a text as this value."""
    if notation is None:
        return bool(text == value if isinstance(value, str) else loose_value(text) == value)
    try:
        read = notation.read(text + "\n", 0)
    except (ValueError, IndexError):
        return False
    return bool(read.value == value) and not text[read.end :].strip()
