"""Finds the answer grammar of a template, by rendering small answers whose fields are known words.

Each answer shows the literals between the fields that it has. The answers are built as they are served, so the literals
are those that a model writes behind the generation prompt. How calls are written is found in three steps: whether the
template writes an object for the whole call, one for its arguments, or every argument by itself; in the last case, how
it writes a number, then texts and other values beside it.

What was found is then tried on other answers. A form that does not read them is not used, and `lacks` says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from templatekit.formats.answers.grammar import NUMBER, Alike, AnswerGrammar, CallObject, Edge, Node, Path, Unread
from templatekit.formats.answers.notation import JSON, PYTHON, Notation, loose_value
from templatekit.formats.answers.parsing import parse_answer
from templatekit.types import Message, SpecialTokens

_CONTENT, _THOUGHT = "Contentprobe", "Thoughtprobe"
_NAMES = ("probe_one", "probe_two", "probe_three", "probe_four")
_KEYS = ("key_one", "key_two", "key_three", "key_four")
_VALUES = ("Valueone", "Valuetwo", "Valuethree", "Valuefour")
_NUMBER = 1234567
_OTHER_VALUES: tuple[Any, ...] = (
    "a 'b' \"c\" \\ d",
    1.5,
    True,
    None,
    {"inner": "Innerprobe", "number": 7},
    ["Itemprobe", 8],
)


class Written(NamedTuple):
    """What a template writes for an answer."""

    prompt: str
    """What it writes in the prompt behind the text of the last message."""
    text: str
    """The answer, from the generation boundary to the end marker."""


WriteFunction = Callable[[Message], Written | None]
"""Writes an answer; None if the template refuses it."""

Arguments = Mapping[str, Any]
Field = tuple[Node, int, int]
"""A field of an answer, with its start and end."""


def probe(write: WriteFunction, tokens: SpecialTokens, *, name: str) -> AnswerGrammar | None:
    """The grammar of the template with this name; None if it writes no plain answer."""
    plain = write(_answer())
    if plain is None:
        return None
    edges: dict[Edge, None] = {}
    lacks: dict[str, str] = {}
    for answer in (_answer(), _answer(thought=True), _answer(thought=True, content=False)):
        if (written := write(answer)) is not None and (fields := _texts(written.text, answer)) is not None:
            edges |= dict.fromkeys(_edges(written.text, fields))
    writes = {"content"}
    if any(edge.target == "reasoning" for edge in edges):
        writes.add("reasoning")
        if not any(edge.literal.strip() for edge in edges if (edge.source, edge.target) == ("reasoning", "content")):
            edges = _without("reasoning", edges)
            lacks["reasoning"] = "nothing but blank space ends it"
    grammar = AnswerGrammar(
        name=name, prompt=plain.prompt, edges=tuple(edges), writes=frozenset(writes), lacks=lacks
    ).ended_as(tokens)
    form = _CallForm.of(write)
    if isinstance(form, _CallForm):
        grammar = _with_calls(grammar, form, write).ended_as(tokens)
    elif form:
        grammar = replace(grammar, writes=grammar.writes | {"tool_calls"}, lacks={**grammar.lacks, "tool_calls": form})
    grammar = _tried(grammar, write, _unseen_thoughts(), "reasoning")
    return replace(grammar, alike=(*_alike(grammar, write), *grammar.alike))


def _without(node: Node, edges: Iterable[Edge]) -> dict[Edge, None]:
    return {edge: None for edge in edges if node not in (edge.source, edge.target)}


def _numbered(edges: Iterable[Edge]) -> dict[Edge, None]:
    """The edges with a mark for the number of a call, where literals differ in nothing but that number."""
    found: dict[Edge, None] = {}
    edges = list(edges)
    for edge in edges:
        alike = [e for e in edges if (e.source, e.target) == (edge.source, edge.target)]
        for match in re.finditer(r"\d", edge.literal):
            start, end = match.span()
            texts = {f"{edge.literal[:start]}{int(match[0]) + more}{edge.literal[end:]}" for more in (-2, -1, 1, 2)}
            if len(texts & {e.literal for e in alike}) == 2:  # of the numbers of three calls
                edge = replace(edge, literal=edge.literal[:start] + NUMBER + edge.literal[end:])
                break
        found[edge] = None
    return found


def _joined(edges: Iterable[Edge]) -> dict[Edge, None]:
    """The edges, and those of a field that begins as another one does for the other too: only what follows tells."""
    edges = list(edges)
    more = []
    for index, edge in enumerate(edges):
        for other in edges[index + 1 :]:
            if (edge.source, edge.literal) == (other.source, other.literal) and edge.target != other.target:
                more += [replace(e, source=edge.target) for e in edges if e.source == other.target]
    return dict.fromkeys([*edges, *more])


def _with_calls(grammar: AnswerGrammar, form: _CallForm, write: WriteFunction) -> AnswerGrammar:
    """The grammar with calls of this form, if it reads them."""
    edges = dict.fromkeys(grammar.edges)
    for answer in _answers_with_calls(form):
        if (written := write(answer)) is not None and (fields := form.fields(written.text, answer)) is not None:
            edges |= dict.fromkeys(_edges(written.text, fields))
    found = replace(
        grammar,
        edges=tuple(_joined(_numbered(edges))),
        values=form.values,
        call=form.object,
        id_holds_name=form.id_holds_name,
        writes=grammar.writes | {"tool_calls"},
    )
    return _tried(found, write, _unseen_answers(form), "tool_calls", otherwise=grammar)


def _tried(
    grammar: AnswerGrammar,
    write: WriteFunction,
    answers: Iterable[Message],
    field: str,
    *,
    otherwise: AnswerGrammar | None = None,
) -> AnswerGrammar:
    """The grammar with what it does not read of these answers.

    If it does not read the first, it lacks the field; `otherwise` is then the grammar without it.
    """
    if field not in grammar.writes or field in grammar.lacks:
        return grammar
    alike: list[Alike] = []
    unread: list[Unread] = []
    for index, answer in enumerate(answers):
        if (written := write(answer)) is None:
            continue
        parsed = parse_answer(grammar, written.text)
        if is_same(parsed.message, answer) and not parsed.problems:
            continue
        again = None if parsed.problems else write(parsed.message)
        if again is not None and again.text == written.text:
            alike.append(Alike(first=shown(answer), second=shown(parsed.message), text=written.text))
            continue
        problem = ", ".join(parsed.problems) or f"read as {shown(parsed.message)}"
        unread.append(Unread(message=shown(answer), text=written.text, problem=problem))
        if not index:
            why = f"{written.text!r} is not read: {problem}"
            if otherwise is None:
                otherwise = replace(grammar, edges=tuple(_without("reasoning", grammar.edges)))
            return replace(otherwise, writes=grammar.writes, lacks={**otherwise.lacks, field: why})
    return replace(grammar, alike=(*grammar.alike, *alike), unread=(*grammar.unread, *unread))


def _answer(
    *, content: bool = True, thought: bool = False, calls: Sequence[Mapping[str, Any]] = ()
) -> Message:
    return Message(
        role="assistant",
        content=_CONTENT if content else "",
        reasoning=_THOUGHT if thought else "",
        tool_calls=tuple(calls),
    )


def call_of(name: str, arguments: Arguments, id: str) -> Mapping[str, Any]:
    """A tool call."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _texts(text: str, answer: Message) -> list[Field] | None:
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


def _edges(text: str, fields: Sequence[Field]) -> Iterator[Edge]:
    """The literals of a text with these fields."""
    all_fields: list[Field] = [("start", 0, 0), *fields, ("end", len(text), len(text))]
    for (source, _, start), (target, end, _) in pairwise(all_fields):
        yield Edge(source=source, target=target, literal=text[start:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class _CallForm:
    """How a template writes calls."""

    kind: str
    """`call`, `calls`, `arguments` or `each`."""
    values: Notation | None = JSON
    object: CallObject | None = None
    id_holds_name: bool = False
    before_value: str = ""
    """What stands between a key and a number."""
    after_value: str = ""
    """What stands behind a number at the end of an answer."""
    marks_texts: bool = False
    """Whether texts stand between other literals than numbers."""

    def id(self, index: int) -> str:
        """The id of a call, which is its index-th name's."""
        return f"functions.{_NAMES[index]}:{index}" if self.id_holds_name else f"call{index:05d}"

    def call(self, index: int, arguments: Arguments) -> Mapping[str, Any]:
        """A call of the index-th name."""
        return call_of(_NAMES[index], arguments, self.id(index))

    @classmethod
    def of(cls, write: WriteFunction) -> _CallForm | str:
        """The form of one template, or why it is not known; empty if the template writes no calls."""
        why = ""
        for form in (cls(kind=""), cls(kind="", id_holds_name=True)):
            call = form.call(0, {_KEYS[0]: _VALUES[0]})
            written = write(_answer(content=False, calls=[call]))
            if written is None:
                continue
            text = written.text
            if form.id_holds_name and form.id(0) not in text:
                continue
            if not form.id_holds_name and _NAMES[0] not in text:
                why = "the template writes no names of functions"
                continue
            found = form._with_object(text) or form._with_arguments(text) or form._with_each(write)
            if found is not None:
                return found
            why = "arguments are written in no form that is known"
        return why

    def _with_object(self, text: str) -> _CallForm | None:
        """The form, if one object of JSON holds the name and the arguments."""
        name, value = text.index(_NAMES[0]), text.find(_VALUES[0])
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
            path = _path_to(call, lambda item: item == _NAMES[0])
            arguments = _path_to(call, lambda item: _same_object(item, {_KEYS[0]: _VALUES[0]}))
            if not path or not arguments or not isinstance(call, dict):
                return None
            place = CallObject(
                name=path,
                arguments=arguments,
                id=_path_to(call, lambda item: item == self.id(0)) or None,
                first_key=next(iter(call)),
            )
            return replace(self, kind="calls" if isinstance(found, list) else "call", object=place)
        return None

    def _with_arguments(self, text: str) -> _CallForm | None:
        """The form, if one object holds the arguments."""
        for notation in (JSON, PYTHON):
            if _object_with(text, {_KEYS[0]: _VALUES[0]}, notation, 0) is not None:
                return replace(self, kind="arguments", values=notation)
        return None

    def _with_each(self, write: WriteFunction) -> _CallForm | None:
        """The form, if every argument is written by itself."""

        def written_with(value: Any) -> str | None:
            found = write(_answer(content=False, calls=[self.call(0, {_KEYS[0]: value})]))
            if found is None or found.text.count(_KEYS[0]) != 1:
                return None
            return found.text[found.text.index(_KEYS[0]) + len(_KEYS[0]) :]

        with_number = written_with(_NUMBER)
        sign = str(_NUMBER)
        if with_number is None:  # a template of texts alone
            with_number, sign = written_with(_VALUES[0]), _VALUES[0]
        if with_number is None or with_number.count(sign) != 1:
            return None
        before, after = with_number.split(sign)
        written: list[tuple[Any, str]] = []
        marks_texts = False
        for value in (_VALUES[0], *_OTHER_VALUES):
            if (text := written_with(value)) is None:
                continue
            if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
                written.append((value, text[len(before) : len(text) - len(after)]))
            elif value == _VALUES[0] and text.count(value) == 1:
                marks_texts = True
        form = replace(self, kind="each", before_value=before, after_value=after, marks_texts=marks_texts)
        counts = {notation: sum(_reads(notation, *pair) for pair in written) for notation in _notations(written)}
        best = max(counts, key=lambda notation: counts[notation])
        if not marks_texts and not _reads(best, *written[0]):
            return None
        return replace(form, values=best)

    def fields(self, text: str, answer: Message) -> list[Field] | None:
        """Where the fields of an answer stand in its text; None if that is not clear."""
        found = _texts(text, answer)
        if found is None:
            return None
        position = max((end for node, _, end in found if node == "content"), default=0)
        if self.kind in ("call", "calls"):
            return self._objects(text, answer, found)
        for index, call in enumerate(answer.tool_calls):
            for node, word in (("id", self.id(index)), ("name", _NAMES[index])):
                if node == "name" and self.id_holds_name:
                    continue
                if text.count(word) == 1:
                    found.append((node, text.index(word), text.index(word) + len(word)))  # type: ignore[arg-type]
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
            first = text.find(_NAMES[0])
            for start in (i for i, sign in enumerate(text[:first]) if sign == "["):
                try:
                    calls, end = JSON.read(text, start)
                except ValueError:
                    continue
                if end > first and isinstance(calls, list) and len(calls) == len(answer.tool_calls):
                    return sorted([*found, ("calls", start, end)], key=lambda field: field[1])
            return None
        for index in range(len(answer.tool_calls)):
            name = text.find(_NAMES[index])
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


def _answers_with_calls(form: _CallForm) -> Iterator[Message]:
    """Answers that show the literals around calls and arguments."""
    one = form.call(0, {_KEYS[0]: _VALUES[0]})
    second = form.call(1, {_KEYS[1]: _VALUES[1]})
    third = form.call(2, {_KEYS[2]: _VALUES[2]})
    for calls in ([one], [one, second], [one, second, third]):
        for content in (False, True):
            for thought in (False, True):
                yield _answer(content=content, thought=thought, calls=calls)
    if form.kind != "each":
        return
    for arguments in (
        {},
        {_KEYS[0]: _VALUES[0], _KEYS[2]: _VALUES[2]},
        {_KEYS[0]: _NUMBER},
        {_KEYS[0]: _NUMBER, _KEYS[2]: _VALUES[2]},
        {_KEYS[0]: _VALUES[0], _KEYS[2]: _NUMBER},
        {_KEYS[0]: _NUMBER, _KEYS[2]: _NUMBER + 1},
    ):
        for content in (False, True):
            yield _answer(content=content, calls=[form.call(0, arguments)])
        yield _answer(content=False, calls=[form.call(0, arguments), second])
        yield _answer(content=False, calls=[second_first(form), form.call(1, _renamed(arguments))])


def second_first(form: _CallForm) -> Mapping[str, Any]:
    """A call that is written before one with other arguments."""
    return form.call(0, {_KEYS[3]: _VALUES[3]})


def _renamed(arguments: Arguments) -> Arguments:
    return {key: value for key, value in arguments.items()}


_NASTY = "Two \"quotes\", a 'mark' \\ and\na line"


def _unseen_thoughts() -> Iterator[Message]:
    yield Message(role="assistant", content="An answer.\n\nIn two parts.", reasoning="First this.\n\nThen that.")
    yield Message(role="assistant", content="An answer, without a thought.")


def _unseen_answers(form: _CallForm) -> Iterator[Message]:
    """Answers of other shapes, to try a grammar on."""
    nested = {"city": "Oslo", "days": 3, "exact": False, "where": {"at": [1.5, None, "x"], "name": _NASTY}}
    for content in ("", "An answer.\n\nIn two parts."):
        for calls in (
            [("get_weather", {"city": "Oslo"})],
            [("get_weather", nested)],
            [("now", {})],
            [("a", {"x": 1}), ("b", {}), ("c.d-e", {"text": _NASTY, "more": True}), ("a", {"x": [1, {"y": 2}]})],
        ):
            made = [
                call_of(name, arguments, f"functions.{name}:{index}" if form.id_holds_name else f"call{index:05d}")
                for index, (name, arguments) in enumerate(calls)
            ]
            yield Message(role="assistant", content=content, tool_calls=tuple(made))


def shown(message: Message) -> Mapping[str, Any]:
    """The fields of a message that hold something, for reports."""
    values = {"reasoning": message.reasoning, "content": message.content}
    return {key: value for key, value in values.items() if value} | (
        {"tool_calls": [call["function"] for call in message.tool_calls]} if message.tool_calls else {}
    )


def is_same(parsed: Message, written: Message) -> bool:
    """Whether two answers have equal text, but for blank space at its ends, and equal calls, but for ids."""
    if parsed.content.strip() != written.content.strip() or parsed.reasoning.strip() != written.reasoning.strip():
        return False
    return [call["function"] for call in parsed.tool_calls] == [call["function"] for call in written.tool_calls]


def _alike(grammar: AnswerGrammar, write: WriteFunction) -> Iterator[Alike]:
    """Messages that the template writes alike: where it writes a literal, the text before it can hold the same."""
    seen = set()
    for edge in grammar.edges:
        if edge.source not in ("reasoning", "content") or edge.target == "end" or (edge.source, edge.target) in seen:
            continue
        literal = edge.literal.strip()
        if not literal or edge.source == "content":
            continue
        seen.add((edge.source, edge.target))
        first = Message(role="assistant", reasoning=f"a{edge.literal}b", content="c")
        second = Message(role="assistant", reasoning="a", content=f"b{edge.literal}c")
        one, other = write(first), write(second)
        if one is not None and other is not None and one.text == other.text:
            yield Alike(first=shown(first), second=shown(second), text=one.text)
