"""Records how a template renders one example: it renders the example with symbolic texts, and records a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import jinja2

from templatekit.formats.environment import fixed_clock
from templatekit.formats.provenance import TrackedDict, TrackedList
from templatekit.formats.tracing.finished_text import FinishedText, finish
from templatekit.formats.tracing.symbolic_text import (
    Piece,
    SymbolicText,
    depends_on_data,
    expression_of,
    pieces_of,
    symbolic_concat,
)
from templatekit.formats.tracing.trace import Trace, TraceAborted
from templatekit.types import Example, Message, TargetSpan, field_origin

VARIABLE_FIELDS = ("content", "context", "reasoning", "name", "tool_call_id")
"""The fields of a message that become variables; all others are constants of the shape."""


class RecordedText(NamedTuple):
    """The text of one sample of the recorded example."""

    message_count: int
    """How many messages of the example the sample has."""
    text: FinishedText
    targets: tuple[TargetSpan, ...]
    """The offsets are those of the recorded example's own text."""


class Recording(NamedTuple):
    """The result of recording an example."""

    trace: Trace
    fields: dict[tuple[int, str], str]
    """The variable of each field, by message index and name."""
    texts: tuple[RecordedText, ...]
    weights: tuple[float, ...] | None
    """The messages' weights; None where they are not part of the shape."""


class Recorder:
    """Renders the texts of one example symbolically, and records all of them in one trace."""

    def __init__(self, example: Example, variables: Callable[[tuple[Message, ...], bool], dict[str, Any]]) -> None:
        """`variables` returns the template's variables for messages; with True, for the prompt after them."""
        self.trace = Trace()
        self._messages = example.messages
        self._variables = variables
        self._strftime_now = self._guarded_clock()
        self.fields = {
            (index, field): self.trace.field(f"{field}{index}")
            for index, message in enumerate(example.messages)
            for field in VARIABLE_FIELDS
            if getattr(message, field)
        }
        """The variables of the fields that are not empty."""
        self.example = replace(example, messages=tuple(map(self._message, range(len(example.messages)))))
        """The example with symbolic texts."""

    def render(self, template: jinja2.Template, messages: tuple[Message, ...], prompt: bool) -> SymbolicText:
        """The template's text for these messages; raises what the template raises."""
        variables = {name: self._symbolic(value, messages) for name, value in self._variables(messages, prompt).items()}
        variables["strftime_now"] = self._strftime_now
        return symbolic_concat(template.root_render_func(template.new_context(variables)))

    def text_of(self, index: int, field: str) -> str:
        """A field's text in a whole rendering."""
        text = getattr(self.example.messages[index], field)
        return finish(text) if isinstance(text, SymbolicText) else text

    def covers(self, parts: Sequence[str], text: str) -> bool:
        """Whether texts have together as many characters as another, without blank space at its ends; with a guard."""
        outcome = sum(map(str.__len__, parts)) >= len(str.strip(text))
        if any(map(depends_on_data, (*parts, text))):
            lengths = [f"len({expression_of(part)})" for part in parts] or ["0"]
            self.trace.guard(f"{' + '.join(lengths)} >= len({expression_of(text)}.strip())", outcome)
        return outcome

    def _guarded_clock(self) -> Callable[[str], str]:
        """`strftime_now` with a guard on its result."""
        now = fixed_clock(datetime.now())

        def strftime_now(format: str) -> str:
            if depends_on_data(format):
                raise TraceAborted("a time whose format depends on data")
            text = now(format)
            self.trace.guard(f"strftime_now({str(format)!r}) == {text!r}", True)
            return text

        return strftime_now

    def _message(self, index: int) -> Message:
        message = self._messages[index]
        texts: dict[str, Any] = {
            field: SymbolicText([self._variable(index, field, message)])
            for field in VARIABLE_FIELDS
            if (index, field) in self.fields
        }
        return replace(message, **texts)

    def _variable(self, index: int, field: str, message: Message) -> Piece:
        text, origin = getattr(message, field), field_origin(field, index)
        return Piece(text=text, origin=origin, variable=self.fields[index, field], trace=self.trace)

    def _symbolic(self, value: Any, messages: tuple[Message, ...]) -> Any:
        """A value with symbolic texts, of which whole fields of the example are variables and all others constants."""
        if isinstance(value, str):
            return SymbolicText([self._resolve(piece, messages) for piece in pieces_of(value)])
        if isinstance(value, Mapping):
            items = [(self._symbolic(key, messages), self._symbolic(item, messages)) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            items = [self._symbolic(item, messages) for item in value]
        else:
            return value
        if not isinstance(value, (TrackedDict, TrackedList)):
            return dict(items) if isinstance(value, Mapping) else items
        tracked = type(value)(items)
        tracked._origin = value._origin
        return tracked

    def _resolve(self, piece: Piece, messages: tuple[Message, ...]) -> Piece:
        """The variable of the field that a piece is, else the piece itself."""
        index, field = piece.origin.message, piece.origin.field
        if index is None or field not in VARIABLE_FIELDS or (index, field) not in self.fields:
            return piece
        message, own = messages[index], self._messages[index]
        # A probe message, which replaces one of the example's to test the template, has another content or a thought.
        # That is the same for every example, even one that has it itself.
        if message is not own and field == "content" and message.reasoning == own.reasoning:
            return piece
        if getattr(message, field) is not getattr(own, field):
            return piece
        if piece.text != getattr(own, field):
            raise TraceAborted("a part of a field")
        return self._variable(index, field, message)
