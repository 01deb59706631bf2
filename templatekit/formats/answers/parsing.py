"""Reads what a model wrote: an answer becomes a message, by the grammar of its template.

The parser goes along the grammar's edges. In a field, it looks for the earliest of the literals that can follow; blank
space at the ends of a literal may be missing. Fields in brackets end where their brackets do. Nothing is lost: every
character becomes part of a field, stands for a literal, or is a leftover with a reason.

An answer may be given as text, or as pieces of which each is known to be a control token or not. A control token is
then never text, and text is never a control token. To keep them apart, the parser replaces each control token by half
of a surrogate pair, which no text can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

from templatekit.formats.answers.grammar import CALL_NODES, NUMBER, OBJECT_NODES, AnswerGrammar, Node
from templatekit.formats.answers.notation import JSON, Incomplete, typed_value
from templatekit.types import AnswerPiece, Message

_FIRST_MARK, _MARKS = 0xD800, 0x800
_DIGITS = re.compile(r"\d+")
_NAME_IN_ID = re.compile(r"(?:functions\.)?([^\s:]+):\d+")
_CONTROL_CHARACTERS = re.compile("[\ud800-\udfff]")

Problem: TypeAlias = Literal[
    "no_end", "open_thought", "open_call", "bad_call", "second_thought", "behind_end", "control_token", "between_fields"
]
"""What is wrong with an answer.

- `no_end`: no end marker; the answer was cut, or goes on
- `open_thought`: the answer ends within its reasoning
- `open_call`: it ends within a call
- `bad_call`: a call that cannot be read, such as JSON that is none
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


class _Step(NamedTuple):
    """Where a literal leads."""

    node: Node
    length: int
    """How many characters of the text found are the literal."""
    may_end: bool = False
    """Whether the answer may also end there."""


class _Table(NamedTuple):
    """The literals that may follow a field, with and without the blank space at their ends."""

    pattern: re.Pattern[str] | None
    steps: Mapping[str, _Step]
    """For each text, where it leads."""
    beginnings: frozenset[str]
    """Everything that may become one of these texts."""
    longest: int
    is_numbered: bool
    """Whether literals hold the number of a call."""

    @classmethod
    def of(
        cls, literals: Iterable[tuple[str, Node]], trigger: Sequence[str] = (), *, ends_at_blank: bool = False
    ) -> _Table:
        """The table of pairs of a literal and the node it leads to.

        `trigger` begins a call that no literal opens. Blank space alone ends a field only with `ends_at_blank`.
        """
        steps: dict[str, _Step] = {}
        literals = list(literals)
        ends = {literal for literal, node in literals if node == "end"}
        for literal, node in sorted(literals, key=lambda pair: pair[1] == "end"):
            may_end = node != "end" and literal in ends
            if literal.strip():
                for variant in _variants(literal):
                    steps.setdefault(variant, _Step(node, len(variant), may_end))
            elif node in OBJECT_NODES:
                for begin in ["{"] if node == "arguments" else trigger:
                    steps.setdefault(literal + begin, _Step(node, len(literal)))
            elif literal and ends_at_blank:
                steps.setdefault(literal, _Step(node, len(literal), may_end))
        ordered = sorted(steps, key=len, reverse=True)
        pattern = re.compile("|".join(map(_expression, ordered))) if ordered else None
        beginnings = frozenset(text[:length] for text in ordered for length in range(1, len(text)))
        is_numbered = any(NUMBER in text for text in ordered)
        longest = (len(ordered[0]) if ordered else 0) + 6 * is_numbered
        return cls(pattern, steps, beginnings, longest, is_numbered)

    def step(self, text: str) -> _Step:
        """Where a literal that was found leads."""
        if (found := self.steps.get(text)) is not None:
            return found
        return self.steps[_DIGITS.sub(NUMBER, text)]._replace(length=len(text))

    def may_become(self, text: str) -> bool:
        """Whether a text is the beginning of a literal, but no whole one that could not be longer."""
        return text in self.beginnings or (self.is_numbered and _DIGITS.sub(NUMBER, text) in self.beginnings)

    def held(self, text: str, position: int) -> int:
        """Where the text, from a position on, ends in what may become a literal; its length if it does not."""
        for length in range(min(self.longest - 1, len(text) - position), 0, -1):
            if self.may_become(text[-length:]):
                return len(text) - length
        return len(text)


def _expression(literal: str) -> str:
    """A regular expression for a literal; a number stands for any."""
    return re.escape(literal).replace(re.escape(NUMBER), r"\d+")


def _variants(literal: str) -> Iterator[str]:
    """A literal, then the same with less blank space at its ends."""
    core = literal.strip()
    start = literal.index(core)
    before, after = literal[:start], literal[start + len(core) :]
    for first in range(len(before) + 1):
        for last in range(len(after), -1, -1):
            yield before[first:] + core + after[:last]


class _Tables:
    """The tables of one grammar, with control tokens replaced."""

    def __init__(self, grammar: AnswerGrammar, marks: Mapping[str, str]) -> None:
        self.grammar, self.marks = grammar, marks
        tokens = sorted(marks, key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        self.values = grammar.values and grammar.values.with_quote(self.marked(grammar.values.quote))
        self._trigger = _triggers(grammar)
        stops = [(self.marked(stop), "end") for stop in grammar.stops]
        nodes = {edge.source for edge in grammar.edges} | {"reasoning", "content"}
        self.by_node: dict[Node, _Table] = {
            node: _Table.of(
                [*self._literals(node), *stops],
                self._trigger,
                ends_at_blank=node in ("id", "name", "key") or node in OBJECT_NODES,
            )
            for node in nodes
            if node != "start"
        }
        self.stop = _Table.of(stops).pattern
        self.thought = _Table.of([(self.marked(t), "reasoning") for t in grammar.literals("start", "reasoning")])

    def marked(self, text: str) -> str:
        """The text with control tokens replaced."""
        return self._token.sub(lambda match: self.marks[match[0]], text) if self._token else text

    def _literals(self, node: Node) -> list[tuple[str, Node]]:
        return [(self.marked(edge.literal), edge.target) for edge in self.grammar.targets(node)]

    def start(self, prompt: str | None) -> tuple[_Table, tuple[str, Node]]:
        """The literals that may begin an answer behind a prompt.

        Where none of them does, a field begins behind blank space; both are returned too.
        """
        literals = list(_remaining(self.grammar, prompt))
        stops = [(self.marked(stop), "end") for stop in self.grammar.stops]
        begun = {target: literal for literal, target in literals if not literal.strip()}
        default: Node = next((node for node in ("reasoning", "content", "name") if node in begun), "content")
        marked = [(self.marked(literal), target) for literal, target in literals]
        return _Table.of([*marked, *stops], self._trigger), (begun.get(default, ""), default)


def _triggers(grammar: AnswerGrammar) -> tuple[str, ...]:
    if grammar.call is None or not grammar.call.first_key:
        return ()
    opening = "[" if any(edge.target == "calls" for edge in grammar.edges) else ""
    key = json.dumps(grammar.call.first_key)
    return tuple(f"{opening}{{{blank}{key}" for blank in ("", "\n", " "))


def _remaining(grammar: AnswerGrammar, prompt: str | None) -> Iterator[tuple[str, Node]]:
    """What is left to write of each literal that begins an answer behind a prompt, which may have written some of it.

    For a prompt that ends otherwise, its last literal tells what it left open.
    """
    edges = grammar.targets("start")
    if prompt is None or prompt.endswith(grammar.prompt) or not grammar.prompt:
        yield from ((edge.literal, edge.target) for edge in edges)
        return
    begun = []
    for edge in edges:
        whole = grammar.prompt + edge.literal
        for length in range(len(whole), 0, -1):
            if prompt.endswith(whole[:length]):
                begun.append((length, whole[length:], edge.target))
                break
    best = max((length for length, _, _ in begun), default=0)
    closed = [literal for literal in grammar.literals("reasoning", "content") if prompt.endswith(literal.rstrip())]
    if closed:
        yield "", "content"
    elif best * 2 >= len(grammar.prompt.strip()):
        yield from ((literal, target) for length, literal, target in begun if length == best or not literal)
    else:
        yield from ((edge.literal, edge.target) for edge in edges)


@lru_cache(maxsize=256)
def _tables_of(grammar: AnswerGrammar, marks: tuple[tuple[str, str], ...]) -> _Tables:
    return _Tables(grammar, dict(marks))


class AnswerParser:
    """Reads one answer as it comes in. `feed` takes more of it and returns what was found; `close` gives the message."""

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
        self._marks: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._special: dict[str, bool] = {}
        for token in grammar.controls if pieces else ():
            self._mark(token, False)
        self._tables = _tables_of(grammar, tuple(self._marks.items()))
        self._schemas = dict(_schemas(tools))
        self._start, self._default = self._tables.start(prompt)
        self._node: Node = "start"
        self._buffer = ""
        self._position = 0
        self._spans: list[tuple[str, str]] = []  # text, field or "!problem"
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[Mapping[str, Any]] = []
        self._call: dict[str, Any] | None = None
        self._call_spans = 0
        self._value_read = False
        self._problems: dict[Problem, None] = {}
        self._events: list[AnswerEvent] = []
        self._tried = 0
        self._has_thought = False
        self._may_end = False

    def feed(self, answer: str | Iterable[AnswerPiece]) -> list[AnswerEvent]:
        """Take more of the answer, and return what is certain of it."""
        if isinstance(answer, str):
            self._buffer += answer
        else:
            self._buffer += "".join(
                self._mark(piece.text, piece.is_special) if piece.is_control else piece.text for piece in answer
            )
        self._go(final=False)
        events, self._events = self._events, []
        return events

    def close(self) -> ParsedAnswer:
        """The whole answer as a message."""
        self._go(final=True)
        self._finish()
        return self._result()

    def _mark(self, token: str, special: bool) -> str:
        mark = self._marks.get(token)
        if mark is None:
            if len(self._marks) >= _MARKS:
                return token
            mark = self._marks[token] = chr(_FIRST_MARK + len(self._marks))
            self._texts[mark] = token
        self._special[mark] = self._special.get(mark, False) or special
        return mark

    def _go(self, *, final: bool) -> None:
        while self._step(final):
            pass

    def _step(self, final: bool) -> bool:
        """Read one field, or one literal; False where more text is needed."""
        if self._node == "end":
            if self._position < len(self._buffer):
                self._leave_over(len(self._buffer), "behind_end")
            return False
        if self._node == "start":
            return self._begin(final)
        if self._node in OBJECT_NODES or (self._node == "value" and self._tables.values is not None):
            return self._follow(final) if self._value_read else self._read_value(final)
        return self._read_text(final)

    def _begin(self, final: bool) -> bool:
        rest = self._buffer[self._position :]
        if not final and (not rest or self._start.may_become(rest)):
            return False
        match = self._start.pattern.match(self._buffer, self._position) if self._start.pattern else None
        if match is not None:
            self._cross(match[0], self._start)
            return True
        blank, node = self._default
        if not final and len(rest) < len(blank) and blank.startswith(rest):
            return False
        if blank and rest.startswith(blank):
            self._spans.append((blank, ""))
            self._position += len(blank)
        if node in CALL_NODES:
            self._call, self._call_spans = {"arguments": {}}, len(self._spans)
        self._enter(node)
        return True

    def _read_text(self, final: bool) -> bool:
        """Read a field that ends where a literal begins."""
        table = self._tables.by_node[self._node]
        match = table.pattern.search(self._buffer, self._position) if table.pattern else None
        held = len(self._buffer) if final else table.held(self._buffer, self._position)
        if match is not None and (final or match.start() < held):
            self._take_text(match.start())
            self._cross(match[0], table)
            return True
        if self._node in ("reasoning", "content"):
            self._take_text(held)
        return False

    def _take_text(self, end: int) -> None:
        """Make the text up to here part of the field."""
        text = self._buffer[self._position : end]
        node, self._position = self._node, end
        if not text:
            if node in CALL_NODES:
                self._fill(node, "")
            return
        self._may_end = False
        if node in CALL_NODES:
            self._spans.append((text, self._call_field(node)))
            self._fill(node, self._plain(text))
            return
        parts = self._content if node == "content" else self._reasoning
        for part in re.split("([\ud800-\udfff])", text):
            if not part:
                continue
            if self._special.get(part):
                self._spans.append((part, "!control_token"))
                self._problems["control_token"] = None
                continue
            plain = self._plain(part)
            self._spans.append((part, node))
            parts.append(plain)
            self._events.append(AnswerEvent("content" if node == "content" else "reasoning", plain))

    def _fill(self, node: Node, text: str) -> None:
        """Put a text into the call that is being read."""
        call = self._call
        assert call is not None
        if node in ("name", "id"):
            call[node] = text
            if node == "name":
                self._events.append(AnswerEvent("name", text))
        elif node == "key":
            call["key"] = text
        else:
            self._add_argument(text if node == "string" else _Untyped(text))

    def _add_argument(self, value: Any) -> None:
        assert self._call is not None
        self._call["arguments"][self._call.get("key", "")] = value

    def _read_value(self, final: bool) -> bool:
        """Read a field that ends where its brackets or quotes do."""
        if not final and self._tried and not re.search(r"[\]})\"'\ud800-\udfff>]", self._buffer[self._tried :]):
            return False
        notation = self._tables.values or JSON
        if self._node in ("call", "calls"):
            notation = JSON
        try:
            value, end = notation.read(self._buffer + "\n" if final else self._buffer, self._position)
        except Incomplete:
            self._tried = len(self._buffer)
            if self._tables.stop and (match := self._tables.stop.search(self._buffer, self._position)):
                self._drop_call(match.start(), "open_call")
                self._cross(match[0], self._tables.by_node["content"])
                return True
            return False
        except (ValueError, IndexError, RecursionError):
            return self._skip_bad_call(final)
        end = min(end, len(self._buffer))
        self._tried = 0
        text = self._buffer[self._position : end]
        self._spans.append((text, self._call_field(self._node)))
        self._position = end
        if self._node == "value":
            self._add_argument(self._plain_value(value))
        else:
            try:
                self._take_object(self._plain_value(value))
            except (LookupError, TypeError, ValueError):
                self._spans.pop()
                self._position -= len(text)
                return self._skip_bad_call(final)
        self._value_read = True
        return True

    def _take_object(self, value: Any) -> None:
        """Take the arguments, the call or the calls that an object holds; raises if it does not hold them."""
        call = self._call
        assert call is not None
        if self._node == "arguments":
            call["arguments"] = _object(value)
            return
        form = self._grammar.call
        assert form is not None
        found = []
        for each in value if self._node == "calls" else [value]:
            name, arguments, id = form.name_of(each), _object(form.arguments_of(each)), form.id_of(each)
            if not isinstance(name, str):
                raise TypeError("a name is a text")
            found.append({"name": name, "arguments": arguments, "id": id})
        if not found:
            raise ValueError("no calls")
        for each in found[:-1]:
            self._events.append(AnswerEvent("name", each["name"]))
            self._calls.append(_call(**each))
            self._events.append(AnswerEvent("tool_call", call=self._calls[-1]))
        call.update(found[-1])
        self._events.append(AnswerEvent("name", call["name"]))

    def _follow(self, final: bool) -> bool:
        """Cross the literal behind a field in brackets."""
        table = self._tables.by_node[self._node]
        rest = self._buffer[self._position :]
        if not final and (not rest or table.may_become(rest)):
            return False
        match = table.pattern.match(self._buffer, self._position) if table.pattern else None
        if match is None:
            found = table.pattern.search(self._buffer, self._position) if table.pattern else None
            if found is None and not final:
                return False
            if found is None:
                if rest.strip():
                    self._leave_over(len(self._buffer), "between_fields")
                return False
            self._leave_over(found.start(), "between_fields")
            return True
        self._cross(match[0], table)
        return True

    def _skip_bad_call(self, final: bool) -> bool:
        """Leave a call over that cannot be read, up to the literal that follows it."""
        table = self._tables.by_node[self._node]
        match = table.pattern.search(self._buffer, self._position) if table.pattern else None
        if match is None:
            if final:
                self._drop_call(len(self._buffer), "bad_call")
                self._node = "content"
            return False
        self._drop_call(match.start(), "bad_call")
        self._cross(match[0], table)
        return True

    def _drop_call(self, end: int, problem: Problem) -> None:
        """Make the call that is being read a leftover, with the text up to `end`."""
        text = "".join(text for text, _ in self._spans[self._call_spans :]) + self._buffer[self._position : end]
        del self._spans[self._call_spans :]
        if text:
            self._spans.append((text, f"!{problem}"))
        self._problems[problem] = None
        self._position = end
        self._call = None

    def _leave_over(self, end: int, problem: Problem) -> None:
        text = self._buffer[self._position : end]
        self._position = end
        if not text.strip():
            self._spans.append((text, ""))
            return
        self._spans.append((text, f"!{problem}"))
        self._problems[problem] = None

    def _cross(self, text: str, table: _Table) -> None:
        """Go over a literal to the field behind it."""
        node, length, self._may_end = table.step(text)
        begins_call = node in ("call", "calls") or (
            node in ("name", "id") and (self._call is None or node in self._call or "arguments" in self._call_done())
        )
        if self._call is not None and (begins_call or node in ("content", "reasoning", "end")):
            self._end_call(node)
        if begins_call:
            self._call_spans = len(self._spans)
            self._call = {"arguments": {}}
        if node in CALL_NODES and self._call is None:  # in the middle of a call that was left over
            self._call_spans = len(self._spans)
            self._call = {"arguments": {}}
        self._spans.append((text[:length], ""))
        self._position += length
        self._enter(node)

    def _call_done(self) -> Collection[str]:
        """What is known of the call that is being read."""
        assert self._call is not None
        known = {name for name in ("name", "id") if name in self._call}
        if self._value_read or self._call["arguments"]:
            known.add("arguments")
        return known

    def _enter(self, node: Node) -> None:
        if node == "reasoning" and self._has_thought:
            self._problems["second_thought"] = None
        if node == "end" and self._node == "reasoning" and "end" not in {
            edge.target for edge in self._grammar.targets("reasoning")
        }:
            self._problems["open_thought"] = None
        self._has_thought = self._has_thought or node == "reasoning"
        self._node, self._value_read, self._tried = node, False, 0
        if node == "end":
            self._events.append(AnswerEvent("end"))

    def _end_call(self, target: Node) -> None:
        """Add the call that has been read to the message, if it is whole."""
        call = self._call
        assert call is not None
        name = call.get("name")
        if name is None and self._grammar.id_holds_name and (match := _NAME_IN_ID.fullmatch(call.get("id") or "")):
            name = match[1]
        expected = {edge.target for edge in self._grammar.targets(self._node)}
        if name is None or target not in expected or (self._node in OBJECT_NODES and not self._value_read):
            self._drop_call(self._position, "open_call" if target == "end" else "bad_call")
            return
        schema = self._schemas.get(name, {})
        arguments = {
            key: typed_value(value.text, schema.get(key)) if isinstance(value, _Untyped) else value
            for key, value in call["arguments"].items()
        }
        self._calls.append(_call(name=name, arguments=arguments, id=call.get("id")))
        self._events.append(AnswerEvent("tool_call", call=self._calls[-1]))
        self._call = None

    def _finish(self) -> None:
        """Decide what the last field is, in an answer that has no end marker."""
        if self._node == "end":
            return
        may_end = any(edge.target == "end" and not edge.literal.strip() for edge in self._grammar.targets(self._node))
        may_end = may_end or (self._may_end and self._position == len(self._buffer))
        if self._call is not None:
            if may_end and (self._value_read or self._node not in OBJECT_NODES):
                if self._node not in OBJECT_NODES:
                    self._take_text(len(self._buffer))
                self._end_call("end")
            elif self._value_read:
                # What the template writes behind a whole call is missing; the call is sound.
                self._node = "call" if self._node == "arguments" and "name" not in self._call else self._node
                self._sound_end()
            else:
                self._drop_call(len(self._buffer), "open_call")
        elif self._position < len(self._buffer):
            if self._node in ("content", "reasoning"):
                self._take_text(len(self._buffer))
            else:
                self._leave_over(len(self._buffer), "between_fields")
        if self._node == "reasoning":
            self._problems["open_thought"] = None
        if not may_end:
            self._problems["no_end"] = None

    def _sound_end(self) -> None:
        assert self._call is not None
        if self._node in OBJECT_NODES:
            known = "name" in self._call or self._grammar.id_holds_name
            target = next(iter(self._grammar.targets(self._node))).target
            if known:
                self._end_call(target)
                return
        self._drop_call(self._position, "open_call")

    def _result(self) -> ParsedAnswer:
        spans: list[AnswerSpan] = []
        leftovers: list[Leftover] = []
        texts = []
        position = 0
        for marked, field in self._spans:
            text = self._plain(marked)
            if not text:
                continue
            texts.append(text)
            end = position + len(text)
            if field.startswith("!"):
                leftovers.append(Leftover(position, text, field[1:]))  # type: ignore[arg-type]
                field = "leftover"
            if spans and spans[-1].field == field and field in ("", "content", "reasoning"):
                spans[-1] = spans[-1]._replace(end=end)
            else:
                spans.append(AnswerSpan(position, end, field))
            position = end
        content = "".join(self._content)
        if self._has_thought and self._tables.thought.pattern and self._tables.thought.pattern.search(content):
            self._problems["second_thought"] = None
        message = Message(
            role="assistant", content=content, reasoning="".join(self._reasoning), tool_calls=tuple(self._calls)
        )
        return ParsedAnswer(
            message=message,
            text="".join(texts),
            spans=tuple(spans),
            leftovers=tuple(leftovers),
            problems=tuple(self._problems),
            ended="no_end" not in self._problems,
        )

    def _call_field(self, node: Node) -> str:
        names = {"key": "arguments", "value": "arguments", "string": "arguments"}
        if node in ("call", "calls"):
            return "tool_calls" if node == "calls" else f"tool_calls[{len(self._calls)}]"
        return f"tool_calls[{len(self._calls)}].{names.get(node, node)}"

    def _plain(self, text: str) -> str:
        """The text with control tokens as text."""
        if not self._texts or text.isascii():
            return text
        return _CONTROL_CHARACTERS.sub(lambda match: self._texts.get(match[0], match[0]), text)

    def _plain_value(self, value: Any) -> Any:
        if not self._texts:
            return value
        if isinstance(value, str):
            return self._plain(value)
        if isinstance(value, dict):
            return {self._plain(key): self._plain_value(item) for key, item in value.items()}
        return [self._plain_value(item) for item in value] if isinstance(value, list) else value


class _Untyped(NamedTuple):
    """An argument as it stands, without quotes."""

    text: str


def _object(arguments: Any) -> Mapping[str, Any]:
    """Arguments as an object, from an object or its JSON text; raises `TypeError` or `ValueError` for anything else."""
    if isinstance(arguments, str):
        arguments = json.loads(arguments) if arguments.strip() else {}
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise TypeError("arguments are an object")
    return arguments


def _call(*, name: str, arguments: Mapping[str, Any], id: Any = None) -> Mapping[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": id, **call} if id else call


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
