"""Renders one example with symbolic texts, and finds on them what is trained: the same code that renders every other.

The environment here differs from the tracing one in that all text in it is symbolic, and in what a template may call:
filters, tests and functions that look at a text only through its own methods and operators are left to do so; all
others work on what is the same in every example of a shape, and are refused anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache, wraps
from typing import Any

import jinja2
from jinja2 import Undefined, nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import SandboxedEnvironment

from templatekit.formats.environment import TracingEnvironment, clock
from templatekit.formats.provenance import TracedDict, TracedList, in_generation
from templatekit.formats.tracing.derived import Length, Split
from templatekit.formats.tracing.symbolic import (
    Piece,
    Symbolic,
    holds_data,
    joined,
    laid,
    lift,
    lifted,
    pieces_of,
    written,
)
from templatekit.formats.tracing.trace import Tape, Unplannable
from templatekit.types import Example, Message, field_origin

TEXTS = ("content", "context", "reasoning", "name", "tool_call_id")
"""The fields of a message that are variables; all else of it is the same in every example of a shape."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _names(
    "capitalize count d default first items join last length list lower map reject rejectattr replace reverse select "
    "selectattr string trim upper"
)
"""Filters that ask texts by their methods alone."""
_TESTS = _names(
    "defined undefined none string mapping number integer float boolean true false callable filter test == eq equalto "
    "!= ne in"
)
"""Tests that ask texts by their operators alone, or ask of their type."""
_LISTS = ("iterable", "sequence")
"""Tests that every text passes, which they find out by going through it."""
_FUNCTIONS = _names("safe_range _raise_exception _Namespace _text strftime_now")
"""What a template may call besides macros and methods, by its Python name."""


class RecordingEnvironment(TracingEnvironment):
    """The same sandbox over symbolic texts."""

    concat = staticmethod(joined)  # type: ignore[assignment]  # Jinja's own declaration says `str.join`
    literal = staticmethod(written)

    def __init__(self) -> None:
        super().__init__()
        for name, function in self.filters.items():
            self.filters[name] = _filter(name, function.__wrapped__)
        self.filters["join"] = _filter("join", _join)
        for name, test in self.tests.items():
            self.tests[name] = _test(name, test)

    @staticmethod
    def mark_generation(text: str) -> Symbolic:
        """As `provenance.mark_generation`."""
        return Symbolic([replace(piece, origin=in_generation(piece.origin)) for piece in pieces_of(text)])

    def concat_operands(self, operands: Iterable[Any]) -> Symbolic:
        """The `~` operator."""
        return joined([str(operand) for operand in operands])

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls from a template."""
        owner = getattr(__obj, "__self__", None)
        given = (*args, *kwargs.values())
        known = isinstance(__obj, (Macro, Undefined)) or isinstance(owner, (Symbolic, dict, list, LoopContext))
        if not known and getattr(__obj, "__name__", None) not in _FUNCTIONS:
            raise Unplannable("a call of what is not known")
        result = SandboxedEnvironment.call(__self, __context, __obj, *args, **kwargs)
        return laid(result, (owner, *given)) if isinstance(result, str) and not isinstance(__obj, Macro) else result


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        if name == "random":
            raise Unplannable("chance")
        given = (*args[passed:], *kwargs.values())
        if name in ("first", "last") and isinstance(given[0], Split):
            return given[0][0 if name == "first" else -1]
        if name in ("length", "count") and isinstance(given[0], Symbolic):
            return given[0]._length()
        if name not in _FILTERS:
            if any(map(holds_data, given)):
                raise Unplannable(f"the filter {name}")
            return lifted(function(*args, **kwargs), given)
        result = function(*args, **kwargs)
        return laid(result, given) if isinstance(result, str) else result

    return recorded


def _test(name: str, function: Any) -> Callable[..., bool]:
    @wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> bool:
        given = args[int(hasattr(function, "jinja_pass_arg")) :]
        if name in _LISTS and isinstance(given[0], (str, Split)):
            return True
        if any(isinstance(value, Length) for value in given):
            raise Unplannable("a test of a length")
        if name not in (*_TESTS, *_LISTS) and any(map(holds_data, (*given, *kwargs.values()))):
            raise Unplannable(f"the test {name}")
        return bool(function(*args, **kwargs))

    return recorded


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    return lift(str(d)).join([str(item) for item in value])


class Recorder:
    """Renders one example symbolically, all of it on one tape."""

    def __init__(self, example: Example, variables: Callable[[tuple[Message, ...], bool], dict[str, Any]]) -> None:
        """`variables` gives what a template receives for messages, or for the prompt behind them."""
        self.tape = Tape()
        self._messages = example.messages
        self._variables = variables
        self._now = self._moment()
        self.fields = {
            (index, field): self.tape.field(f"{field}{index}")
            for index, message in enumerate(example.messages)
            for field in TEXTS
            if getattr(message, field)
        }
        """The variables of texts that are not empty."""
        self.example = replace(example, messages=tuple(map(self._message, range(len(example.messages)))))
        """The example with symbolic texts."""

    def render(self, template: jinja2.Template, messages: tuple[Message, ...], prompt: bool) -> Symbolic:
        """What the template makes of messages; raises what it raises."""
        variables = {name: self._symbolic(value, messages) for name, value in self._variables(messages, prompt).items()}
        variables["strftime_now"] = self._now
        return joined(template.root_render_func(template.new_context(variables)))

    def _moment(self) -> Callable[[str], str]:
        """`strftime_now`, whose result is asked as well."""
        now = clock(datetime.now())

        def strftime_now(format: str) -> str:
            if holds_data(format):
                raise Unplannable("a time by a format from the data")
            text = now(format)
            self.tape.ask(f"at({str(format)!r}) == {text!r}", True)
            return text

        return strftime_now

    def _message(self, index: int) -> Message:
        message = self._messages[index]
        texts: dict[str, Any] = {
            field: Symbolic([self._piece(index, field, message)]) for field in TEXTS if (index, field) in self.fields
        }
        return replace(message, **texts)

    def _piece(self, index: int, field: str, message: Message) -> Piece:
        origin = field_origin(field, index)
        return Piece(text=getattr(message, field), origin=origin, name=self.fields[index, field], tape=self.tape)

    def _symbolic(self, value: Any, messages: tuple[Message, ...]) -> Any:
        """A value with its texts as symbolic ones: those that are whole fields of the example are variables."""
        if isinstance(value, str):
            pieces = [self._known(piece, messages) for piece in pieces_of(value)]
            return Symbolic(pieces)
        if isinstance(value, Mapping):
            items = ((self._symbolic(key, messages), self._symbolic(item, messages)) for key, item in value.items())
            if not isinstance(value, TracedDict):
                return dict(items)
            mapping = TracedDict(items)
            mapping._origin = value._origin
            return mapping
        if isinstance(value, (list, tuple)):
            listed = (self._symbolic(item, messages) for item in value)
            if not isinstance(value, TracedList):
                return list(listed)
            texts = TracedList(listed)
            texts._origin = value._origin
            return texts
        return value

    def _known(self, piece: Piece, messages: tuple[Message, ...]) -> Piece:
        index, field = piece.origin.message, piece.origin.field
        if index is None or field not in TEXTS or (index, field) not in self.fields:
            return piece
        # What is put in a message's place, to see what the template makes of it, is the same for every example.
        if messages[index] is not self._messages[index] and field == "content":
            return piece
        if getattr(messages[index], field) is not getattr(self._messages[index], field):
            return piece
        if piece.text != getattr(self._messages[index], field):
            raise Unplannable("a part of a field")
        return self._piece(index, field, messages[index])


@cache
def recording_environment() -> RecordingEnvironment:
    """The environment in which plans are made."""
    return RecordingEnvironment()
