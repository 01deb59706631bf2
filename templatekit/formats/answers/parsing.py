"""Reads what a model wrote: an answer becomes a message, by the grammar of its template.

The parser goes along the grammar's edges: it reads a field up to the first of the literals that can follow it, goes
over the literal, and is in the next field. A value in brackets or quotes ends where they do, so that it can hold a
literal.

A text may spell what opens a call, and be none: an answer that explains the form of calls. So where a call cannot be
read, the parser goes back to its beginning and reads on as if nothing began there; the text becomes content. Only a
special token is no text. A call that one opened is read up to the literal that follows, and is left over.

Nothing is lost: every character becomes part of a field, stands for a literal, or is a leftover with a reason.

An answer may be given as text, or as pieces of which each is known to be a control token or not. A control token is
then never text, and text is never a control token; see `literals`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from templatekit.formats.answers.grammar import CALL_NODES, OBJECT_NODES, AnswerGrammar, Node
from templatekit.formats.answers.literals import Crossing, Found, tables_of
from templatekit.formats.answers.notation import JSON, ValueScanner, typed_value
from templatekit.hooks.record_fields import as_function
from templatekit.types import AnswerPiece, Message

_LONGEST = {"name": 256, "id": 256, "key": 1024}
"""The most characters of these fields: a text that is longer is none of them."""
_NAME_IN_ID = re.compile(r"(?:functions\.)?([^\s:]+):[0-9]+")

Problem: TypeAlias = Literal[
    "no_end", "open_thought", "open_call", "bad_call", "second_thought", "behind_end", "control_token", "between_fields"
]
"""What is wrong with an answer.

- `no_end`: no end marker; the answer was cut, or goes on
- `open_thought`: the answer ends within its reasoning
- `open_call`: it ends within a call
- `bad_call`: a call that cannot be read, such as JSON that is none; its text is content, or a leftover if a special
  token opened it
- `second_thought`: the content opens a thought, though the answer has one
- `behind_end`: text behind the end marker
- `control_token`: a control token where none belongs
- `between_fields`: text between two fields, where the template writes none
"""


class Leftover(NamedTuple):
    """Text of an answer that is in no field."""

    start: int
    """Its offset in the answer's text."""
    text: str
    problem: Problem


class AnswerSpan(NamedTuple):
    """A run of an answer's characters."""

    start: int
    end: int
    field: str
    """`reasoning`, `content`, or that of a call, as in `tool_calls[0].name`; empty for literals, and `leftover`."""


class AnswerEvent(NamedTuple):
    """What a parser found while an answer came in."""

    field: Literal["reasoning", "content", "name", "tool_call", "end"]
    text: str = ""
    """More text of the field; the name of a call that has begun."""
    call: Mapping[str, Any] | None = None
    """For `tool_call`: the whole call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAnswer:
    """A message, and what is not in it."""

    message: Message
    text: str
    """The answer, with control tokens as text."""
    spans: tuple[AnswerSpan, ...]
    """What each character is: in order, without gaps, over the whole text."""
    leftovers: tuple[Leftover, ...] = ()
    problems: tuple[Problem, ...] = ()
    """What is wrong, each kind once; empty for an answer in the template's form."""
    ended: bool = True
    """Whether the answer has an end marker."""


class _Untyped(NamedTuple):
    """An argument as it stands, without quotes."""

    text: str


@dataclass(slots=True, kw_only=True)
class _OpenCall:
    """What was read of a call so far."""

    first_span: int
    source: Node = "start"
    """The field before it."""
    opening: str = ""
    """The literal that opened it, with marks."""
    name: str | None = None
    id: Any = None
    key: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    is_wrong: bool = False
    """Whether a part of it cannot be read, so that it will be left over."""
    is_cut: bool = False
    """Whether a value of it has no end."""
    has_more: bool = False
    """Whether text that is none of it stands behind it."""

    def add(self, value: Any) -> None:
        """Add an argument under the key that was read last."""
        self.is_wrong = self.is_wrong or self.key in self.arguments
        self.arguments[self.key] = value


class AnswerParser:
    """Reads an answer as it comes in. `feed` takes more of it and returns what was found; `close` gives the message."""

    def __init__(
        self,
        grammar: AnswerGrammar,
        *,
        pieces: bool = False,
        prompt: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`pieces` says that the answer comes in pieces, of which each is known to be a control token or text.

        `prompt` is what the model was given, or its end: a prompt may begin the answer. `tools` give the arguments
        their types where the template writes them without.
        """
        self._grammar = grammar
        self._tables = tables_of(grammar, pieces=pieces)
        self._marks = self._tables.marks()
        self._start = self._tables.start(prompt)
        self._schemas = dict(_schemas(tools))
        self._buffer = ""
        self._position = 0
        """Up to where the buffer was read."""
        self._node: Node = "start"
        self._parts: list[str] = []
        """What was read of a field of a call."""
        self._scanner: ValueScanner | None = None
        """Set where a value in brackets or quotes has not ended yet."""
        self._value_read = False
        """Whether such a value was read, and the literal behind it is to come."""
        self._call: _OpenCall | None = None
        self._calls: list[Mapping[str, Any]] = []
        self._spans: list[tuple[str, str]] = []
        """Each run with marks, and its field; a leftover has `!` and its problem."""
        self._problems: set[Problem] = set()
        self._events: list[AnswerEvent] = []
        self._no_call_before = 0
        """Up to where the buffer holds no beginning of a call, since what looks like one was none."""
        self._has_thought = False
        self._may_end = False
        self._is_finished = False

    def feed(self, answer: str | Iterable[AnswerPiece]) -> list[AnswerEvent]:
        """Take more of the answer, and return what is certain of it; raises `ValueError` behind `finish` or `close`."""
        if self._is_finished:
            raise ValueError("the answer is finished; expected a new parser for another one")
        more = answer if isinstance(answer, str) else "".join(map(self._marks.marked, answer))
        self._buffer = self._buffer[self._position :] + more
        self._no_call_before = max(0, self._no_call_before - self._position)
        self._position = 0
        while self._read(final=False):
            pass
        return self._take_events()

    def finish(self) -> list[AnswerEvent]:
        """Say that no more comes in, and return what that makes certain. `close` does so too."""
        self._finish()
        return self._take_events()

    def close(self) -> ParsedAnswer:
        """The whole answer as a message."""
        self.finish()
        return self._result()

    def _take_events(self) -> list[AnswerEvent]:
        events, self._events = self._events, []
        return events

    def _read(self, *, final: bool) -> bool:
        """Read up to the next literal and go over it; False where more text is needed."""
        if self._node == "end":
            self._take(len(self._buffer))
            return False
        if self._node == "start":
            return self._begin(final)
        if self._scanner is not None:
            return self._read_value(self._scanner, final)
        table = self._tables.by_node[self._node]
        found = table.find(self._buffer, self._position, final=final, no_call_before=self._no_call_before)
        end = found.start if isinstance(found, Found) else found
        if self._call is not None and self._is_none(self._call, self._buffer[self._position : end]):
            self._go_back(self._call)
            return True
        if isinstance(found, Found):
            self._take(found.start)
            self._cross(found)
            return True
        if final and self._value_read and table.may_become(self._buffer[self._position :]):
            self._skip(len(self._buffer))
        self._take(found)
        return False

    def _begin(self, final: bool) -> bool:
        """Go over the literal that begins the answer."""
        table, blank, node = self._start
        if not final and (
            not self._buffer
            or table.may_become(self._buffer)
            or (blank != self._buffer and blank.startswith(self._buffer))
        ):
            return False
        if found := table.match(self._buffer, 0, no_call_before=self._no_call_before):
            self._cross(found)
            return True
        if self._buffer.startswith(blank):
            self._skip(len(blank))
        if node in CALL_NODES:
            self._call = _OpenCall(first_span=len(self._spans))
        self._enter(node)
        return True

    def _read_value(self, scanner: ValueScanner, final: bool) -> bool:
        """Read a value that ends where its brackets or quotes do. A special token ends it as the answer's end does."""
        assert self._call is not None
        limit = self._marks.special_at(self._buffer, self._position, self._tables.quote)
        is_last = final or limit < len(self._buffer)
        try:
            end = scanner.scan(self._buffer, self._position, limit)
            self._parts.append(self._buffer[self._position : end])
            self._position = end
            if scanner.is_done or (is_last and scanner.finish()):
                self._take_value("".join(self._parts))
                return True
        except (LookupError, TypeError, ValueError):
            if self._can_go_back(self._call):
                self._go_back(self._call)
                return True
            self._call.is_wrong = True
        else:
            if not is_last:
                return False
            self._call.is_cut = True
        self._read_again("".join(self._parts))
        return True

    def _read_again(self, text: str) -> None:
        """Go back to where a value began, to read it as a text that ends at a literal."""
        start = self._position - len(text)
        if start >= 0 and self._buffer.startswith(text, start):
            self._position = start
        else:  # it began in an earlier part of the answer
            self._buffer, self._position = text + self._buffer[self._position :], 0
        self._parts.clear()
        self._scanner = None
        if self._buffer.startswith(("{", "["), self._position):  # another call may begin there without a literal
            self._take(self._position + 1)

    def _take_value(self, text: str) -> None:
        """Take a whole value into the call; raises if it does not hold what it should."""
        assert self._call is not None
        notation = self._grammar.values if self._node in ("arguments", "value") else JSON
        value = self._marks.decode(text, notation or JSON, self._tables.quote)
        if self._node == "value":
            self._call.add(value)
        elif self._node == "arguments":
            self._call.arguments = dict(_object(value))
        else:
            self._take_calls(value if self._node == "calls" else [value])
        self._spans.append((text, self._label))
        self._parts.clear()
        self._scanner = None
        self._value_read = True

    def _take_calls(self, objects: Any) -> None:
        """Take the calls that objects hold; the last one is still open."""
        form, call = self._grammar.call, self._call
        assert form is not None and call is not None
        found = []
        for each in objects:
            name, arguments, id = form.name_of(each), dict(_object(form.arguments_of(each))), form.id_of(each)
            if not isinstance(name, str) or not name:
                raise TypeError("a name is a text")
            if not call.opening.strip() and not form.has_arguments(each):
                raise LookupError("no literal says that it is a call, and nothing else does")
            found.append((name, arguments, id))
        for name, arguments, id in found[:-1]:
            self._events.append(AnswerEvent("name", name))
            self._add_call(name, arguments, id)
        call.name, call.arguments, call.id = found[-1]
        self._events.append(AnswerEvent("name", call.name))

    def _take(self, end: int) -> None:
        """Make the text up to here part of the field."""
        text = self._buffer[self._position : end]
        self._position = end
        if not text:
            return
        self._may_end = False
        if self._node == "end":
            self._spans.append((text, "!behind_end"))
        elif self._value_read:
            self._spans.append((text, "!between_fields"))
            if self._call is not None:
                self._call.has_more = True
        elif self._node in CALL_NODES:
            self._parts.append(text)
        else:
            for run, is_special in self._marks.split(text):
                self._spans.append((run, "!control_token" if is_special else self._node))
                if not is_special:
                    name: Any = self._node
                    self._events.append(AnswerEvent(name, self._marks.plain(run)))

    def _skip(self, end: int) -> None:
        """Take the text up to here as a literal."""
        if end > self._position:
            self._spans.append((self._buffer[self._position : end], ""))
            self._position = end

    def _cross(self, found: Found) -> None:
        """Go over a literal to the field behind it, unless the call before it turns out to be none."""
        crossing = found.crossing
        if not self._end_field(crossing):
            return
        if crossing.begins_call or (crossing.target in CALL_NODES and self._call is None):
            opening = self._buffer[found.start : found.end]
            self._call = _OpenCall(first_span=len(self._spans), source=self._node, opening=opening)
        self._skip(found.end)
        self._may_end = crossing.may_end
        if crossing.form == "no_marker":
            self._problems.add("no_end")
        self._enter(crossing.target)

    def _enter(self, node: Node) -> None:
        """Begin a field."""
        if node == "reasoning" and self._has_thought:
            self._problems.add("second_thought")
        self._has_thought = self._has_thought or node == "reasoning"
        self._node, self._value_read = node, False
        if node in ("call", "calls"):
            self._scanner = ValueScanner(JSON)
        elif node in ("arguments", "value") and (values := self._tables.values or (node != "value" and JSON)):
            self._scanner = ValueScanner(values)
        if node == "end" and "no_end" not in self._problems:
            self._events.append(AnswerEvent("end"))

    def _is_none(self, call: _OpenCall, more: str) -> bool:
        """Whether what looks like a call is none: by more of the field that is being read, or what stands behind it."""
        if not self._can_go_back(call):
            return False
        if self._value_read:
            return bool(more.strip()) and not call.opening.strip()
        limit = _LONGEST.get(self._node)
        if limit is None:
            return False
        text = "".join((*self._parts, more)).strip()
        if (opening := call.opening.strip()) and opening in text:
            return True
        return len(text) > limit or "\n" in text or (self._node != "key" and len(text.split()) > 1)

    def _can_go_back(self, call: _OpenCall) -> bool:
        """Whether the text that opened a call can be text."""
        return self._marks.special_at(call.opening, 0, "") == len(call.opening)

    def _go_back(self, call: _OpenCall, *, to_the_end: bool = False) -> None:
        """Read on from the beginning of what looked like a call as if none began there.

        `to_the_end` says that it had no end. Then no later one has, so that a text of many beginnings is read once.
        """
        before = "".join(text for text, _ in self._spans[call.first_span :]) + "".join(self._parts)
        del self._spans[call.first_span :]
        self._buffer, self._position = before + self._buffer[self._position :], 0
        self._no_call_before = len(self._buffer) if to_the_end else max(1, len(call.opening))
        self._parts.clear()
        self._scanner, self._value_read, self._call = None, False, None
        if call.opening.strip():
            self._problems.add("bad_call")
        self._node = call.source
        if call.source != "start" and call.source in CALL_NODES:
            self._node = "content"
            self._skip(self._tables.by_node[call.source].closing(self._buffer))

    def _end_field(self, crossing: Crossing) -> bool:
        """End the field before a literal, and the call if it ends there; False where it was no call."""
        if self._node in CALL_NODES and not self._value_read:
            self._fill("".join(self._parts))
            self._parts.clear()
        if self._call is not None and (crossing.begins_call or crossing.target in ("content", "reasoning", "end")):
            if not self._end_call(self._call, crossing):
                return False
            self._call = None
        if self._node == "reasoning" and crossing.form in ("marker", "cut"):
            self._problems.add("open_thought")
        return True

    def _fill(self, text: str) -> None:
        """Put the text of a field into the call that is being read."""
        call = self._call
        assert call is not None
        plain = self._marks.plain(text)
        call.is_wrong = call.is_wrong or self._marks.special_at(text, 0, "") < len(text)
        if self._node == "id":
            call.id = plain
            if self._grammar.id_holds_name and (match := _NAME_IN_ID.fullmatch(plain)):
                call.name = match[1]
                self._events.append(AnswerEvent("name", match[1]))
        elif self._node == "name":
            call.name = plain
            self._events.append(AnswerEvent("name", plain))
        elif self._node == "key":
            call.key = plain
        elif self._node in ("string", "value"):
            call.add(plain if self._node == "string" else _Untyped(plain))
        if text:
            self._spans.append((text, self._label))

    def _end_call(self, call: _OpenCall, crossing: Crossing) -> bool:
        """Add the call that was read to the message if it is whole, else leave it over; False where it was none."""
        is_object = self._node in OBJECT_NODES
        is_whole = self._value_read if is_object else crossing.form in ("whole", "no_marker")
        if call.name is None or call.is_wrong or call.is_cut or not is_whole:
            if crossing.form in ("whole", "marker") and self._can_go_back(call):
                self._go_back(call, to_the_end=crossing.target == "end")
                return False
            is_open = crossing.target == "end" and not (call.is_wrong and crossing.form == "whole")
            text = "".join(text for text, _ in self._spans[call.first_span :])
            self._spans[call.first_span :] = [(text, "!open_call" if is_open else "!bad_call")]
            return True
        if crossing.form == "marker" and not call.has_more:
            self._problems.add("open_call")
        schema = self._schemas.get(call.name, {})
        arguments = {
            key: typed_value(value.text, schema.get(key)) if isinstance(value, _Untyped) else value
            for key, value in call.arguments.items()
        }
        self._add_call(call.name, arguments, call.id)
        return True

    def _add_call(self, name: str, arguments: Mapping[str, Any], id: Any) -> None:
        self._calls.append(as_function({"name": name, "arguments": arguments} | ({"id": id} if id else {})))
        self._events.append(AnswerEvent("tool_call", call=self._calls[-1]))

    def _finish(self) -> None:
        while self._read(final=True):
            pass
        self._end()

    def _end(self) -> None:
        """End an answer that has no end marker."""
        if self._node == "end" or self._is_finished:
            return
        self._is_finished = True
        edges = self._grammar.targets(self._node)
        may_end = self._may_end or any(edge.target == "end" and not edge.literal.strip() for edge in edges)
        if not self._end_field(Crossing("end", "whole" if may_end else "cut")):
            self._is_finished = False
            self._finish()
            return
        if not may_end:
            self._problems.add("no_end")

    def _result(self) -> ParsedAnswer:
        """The message, with adjacent runs of one kind joined."""
        content = self._text_of("content")
        if self._has_thought and self._tables.thought.is_in(content):
            self._problems.add("second_thought")
        spans: list[AnswerSpan] = []
        leftovers: list[Leftover] = []
        texts: list[str] = []
        position = 0
        for text, kind in _joined(self._spans):
            texts.append(self._marks.plain(text))
            start, position = position, position + len(texts[-1])
            if kind.startswith("!"):
                problem: Any = kind[1:]
                self._problems.add(problem)
                leftovers.append(Leftover(start, texts[-1], problem))
                kind = "leftover"
            spans.append(AnswerSpan(start, position, kind))
        message = Message(
            role="assistant",
            content=self._marks.plain(content),
            reasoning=self._marks.plain(self._text_of("reasoning")),
            tool_calls=tuple(self._calls),
        )
        return ParsedAnswer(
            message=message,
            text="".join(texts),
            spans=tuple(spans),
            leftovers=tuple(leftovers),
            problems=tuple(problem for problem in get_args(Problem) if problem in self._problems),
            ended="no_end" not in self._problems,
        )

    def _text_of(self, field: str) -> str:
        return "".join(text for text, kind in self._spans if kind == field)

    @property
    def _label(self) -> str:
        """The field of the call that is being read, as in `AnswerSpan`."""
        if self._node == "calls":
            return "tool_calls"
        call = f"tool_calls[{len(self._calls)}]"
        if self._node == "call":
            return call
        return f"{call}.{self._node if self._node in ('id', 'name') else 'arguments'}"


def _joined(spans: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The runs of each kind, joined where they are adjacent. Blank space that is in no field counts as a literal."""
    runs: list[tuple[list[str], str]] = []
    for text, kind in spans:
        if runs and runs[-1][1] == kind:
            runs[-1][0].append(text)
        else:
            runs.append(([text], kind))
    joined: list[tuple[str, str]] = []
    for texts, kind in runs:
        text = "".join(texts)
        if kind in ("!behind_end", "!between_fields") and not text.strip():
            kind = ""
        if joined and joined[-1][1] == kind:
            text = joined.pop()[0] + text
        joined.append((text, kind))
    yield from joined


def _object(arguments: Any) -> Mapping[str, Any]:
    """Arguments as an object, from an object or its JSON text; raises `TypeError` or `ValueError` for anything else."""
    if isinstance(arguments, str):
        arguments = JSON.decode(arguments) if arguments.strip() else {}
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise TypeError("arguments are an object")
    return arguments


def _schemas(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas of each tool's parameters, by the tool's name."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            yield name, properties if isinstance(properties, Mapping) else {}


def parse_answer(
    grammar: AnswerGrammar,
    answer: str | Iterable[AnswerPiece],
    *,
    prompt: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> ParsedAnswer:
    """Read a whole answer, as text or in pieces. The other arguments are those of `AnswerParser`."""
    parser = AnswerParser(grammar, pieces=not isinstance(answer, str), prompt=prompt, tools=tools)
    parser.feed(answer)
    return parser.close()
