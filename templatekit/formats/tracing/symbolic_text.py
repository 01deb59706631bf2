"""Symbolic text: it stands for the texts of all examples of a shape, and records what a template does with it.

A `SymbolicText` has the characters of the recorded example, in pieces. A piece is a *constant*, which every example of
the shape has, or a *variable*: a field of the example, or the result of operations on one (`content0.strip()`).
Every method through which a template can look at a text is defined here. It returns symbolic text, or records a guard
and returns its outcome, or aborts the recording. So every example that passes the guards is rendered to the same
pieces, with its own texts in the variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jinja2 import Undefined

from templatekit.formats.provenance import TrackedText, common_origin, concat
from templatekit.formats.tracing.symbolic_values import COMPARISONS, SymbolicLength, SymbolicList
from templatekit.formats.tracing.trace import MAX_LENGTH, Trace, TraceAborted
from templatekit.types import COMPUTED, TEMPLATE, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A constant or a variable of a symbolic text, of one origin."""

    text: str
    """The characters; those of a variable are the recorded example's."""
    origin: Origin
    variable: str = ""
    """The name of the variable; empty for a constant."""
    trace: Trace | None = None
    """The trace that the variable belongs to; None for a constant."""


class SymbolicText(TrackedText):
    """A text in pieces. No constant is empty; a variable may be, until a guard says that it is not."""

    __slots__ = ("_pieces",)
    _pieces: tuple[Piece, ...]

    def __new__(cls, pieces: Iterable[Piece] = ()) -> SymbolicText:
        merged: list[Piece] = []
        for piece in pieces:
            if not piece.variable and not piece.text:
                continue
            last = merged[-1] if merged else None
            if last and not last.variable and not piece.variable and last.origin == piece.origin:
                merged[-1] = replace(last, text=last.text + piece.text)
            else:
                merged.append(piece)
        if len(merged) > MAX_LENGTH:
            raise TraceAborted("too many pieces")
        runs = concat(
            TrackedText(piece.text, ((len(piece.text), piece.origin),)) for piece in merged if piece.text
        )._runs
        self = super().__new__(cls, "".join(piece.text for piece in merged), runs)
        assert isinstance(self, SymbolicText)
        self._pieces = tuple(merged)
        return self

    def _only_variable(self) -> Piece:
        """The only piece, a variable; on several pieces an operation would need guards on where each of them ends."""
        if len(self._pieces) != 1 or not self._pieces[0].variable:
            raise TraceAborted("an operation on a text of several pieces")
        return self._pieces[0]

    def __bool__(self) -> bool:
        if any(not piece.variable for piece in self._pieces):
            return True
        return any(guard_not_empty(piece) for piece in self._pieces)

    def __hash__(self) -> int:
        _abort_on_data((self,))
        return str.__hash__(self)

    def __contains__(self, other: object) -> bool:
        if not isinstance(other, str):
            raise TypeError(f"'in <string>' requires string as left operand, not {type(other).__name__}")
        return _guard_comparison("in", lambda inner, outer: str.__contains__(outer, inner), other, self)

    def __len__(self) -> int:
        _abort_on_data((self,))
        return str.__len__(self)

    def __iter__(self) -> Iterator[str]:
        _abort_on_data((self,))
        return iter([lift(character) for character in TrackedText.__iter__(self)])

    def __add__(self, other: str) -> str:
        return symbolic_concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return symbolic_concat((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: Any) -> str:
        if not _trace_of((self, key)):
            return lift(TrackedText.__getitem__(self, key))
        piece = self._only_variable()
        if isinstance(key, slice):
            bounds = (key.start, key.stop, key.step)
            if any(type(bound) not in (int, type(None)) for bound in bounds):
                raise TraceAborted("a slice whose bounds are not ints")
            return _apply(
                piece, f"{piece.variable}[{':'.join('' if bound is None else str(bound) for bound in bounds)}]"
            )
        if type(key) is not int:
            if hasattr(key, "__index__"):
                raise TraceAborted("an index that is not an int")
            raise TypeError("string indices must be integers")
        assert piece.trace is not None
        exists = -str.__len__(self) <= key < str.__len__(self)
        long_enough = f"len({piece.variable}) {'>' if key >= 0 else '>='} {key if key >= 0 else -key}"
        if not piece.trace.guard(long_enough, exists):
            raise IndexError("string index out of range")
        return _apply(piece, f"{piece.variable}[{key}]")

    def lstrip(self, chars: str | None = None) -> str:
        return self._record_strip("lstrip", chars)

    def rstrip(self, chars: str | None = None) -> str:
        return self._record_strip("rstrip", chars)

    def strip(self, chars: str | None = None) -> str:
        if len(self._pieces) == 1:
            return self._record_strip("strip", chars)
        return self.lstrip(chars).rstrip(chars)

    def _record_strip(self, method: str, chars: str | None) -> SymbolicText:
        """Strip the outermost piece and, if nothing is left of it, the next one."""
        _abort_on_data((chars,))
        pieces = list(self._pieces)
        outermost = -1 if method == "rstrip" else 0
        argument = "" if chars is None else expression_of(chars)
        while pieces:
            piece = pieces[outermost]
            if piece.variable:
                stripped = _apply(piece, f"{piece.variable}.{method}({argument})")._pieces[0]
                remains = len(pieces) == 1 or guard_not_empty(stripped)
            else:
                stripped = replace(piece, text=getattr(piece.text, method)(chars))
                remains = bool(stripped.text)
            if remains:
                pieces[outermost] = stripped
                break
            del pieces[outermost]
        return SymbolicText(pieces)

    def replace(self, old: str, new: str, count: Any = -1) -> str:
        if not _trace_of((self, old, new)):
            return lift(TrackedText.replace(self, old, new, count))
        if old not in self:
            return self
        if new or not old:
            raise TraceAborted("a replacement that is not empty")
        _abort_on_data((old, count))
        piece = self._only_variable()
        return _apply(piece, f"{piece.variable}.replace({expression_of(old)}, '', {expression_of(count)})")

    def join(self, pieces: Iterable[str]) -> str:
        texts: list[str] = []
        for piece in pieces:
            texts += (self, piece) if texts else (piece,)
        return symbolic_concat(texts)

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> Any:
        return self._record_split("split", sep, maxsplit)

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> Any:
        return self._record_split("rsplit", sep, maxsplit)

    def _record_split(self, method: str, sep: str | None, maxsplit: Any) -> Any:
        if not _trace_of((self, sep)):
            return [lift(piece) for piece in getattr(TrackedText, method)(self, sep, maxsplit)]
        if sep is not None and not sep:
            raise ValueError("empty separator")
        _abort_on_data((sep, maxsplit))
        if len(self._pieces) > 1 and sep is not None and maxsplit == -1:
            return self._split_constants(sep)
        piece = self._only_variable()
        assert piece.trace is not None
        expression = f"{piece.variable}.{method}({expression_of(sep)}, {expression_of(maxsplit)})"
        length = len(_evaluate(expression, piece))
        return SymbolicList(piece.trace, expression, length, partial(_apply, piece), never_empty=sep is not None)

    def _split_constants(self, sep: str) -> list[SymbolicText]:
        """The parts between separators, with a guard that all of those are in the constants."""
        count = sum(piece.text.count(sep) for piece in self._pieces if not piece.variable)
        trace = _trace_of((self,))
        assert trace is not None
        if not trace.guard(f"{expression_of(self)}.count({sep!r}) == {count}", str.count(self, sep) == count):
            raise TraceAborted("a separator in one of several pieces")
        parts: list[list[Piece]] = [[]]
        for piece in self._pieces:
            texts = [piece.text] if piece.variable else piece.text.split(sep)
            parts[-1].append(replace(piece, text=texts[0]))
            parts += [[replace(piece, text=text)] for text in texts[1:]]
        return [SymbolicText(piece for piece in part if piece.variable or piece.text) for part in parts]

    def _record_length(self) -> int | SymbolicLength:
        """The result of the filter `length`."""
        trace = _trace_of((self,))
        return SymbolicLength(trace, self, expression_of(self)) if trace else str.__len__(self)

    def partition(self, sep: str) -> Any:
        return self._record_partition("partition", sep)

    def rpartition(self, sep: str) -> Any:
        return self._record_partition("rpartition", sep)

    def _record_partition(self, method: str, sep: str) -> Any:
        if not _trace_of((self, sep)):
            return tuple(lift(piece) for piece in getattr(TrackedText, method)(self, sep))
        if not sep:
            raise ValueError("empty separator")
        _abort_on_data((sep,))
        piece = self._only_variable()
        expression = f"{piece.variable}.{method}({expression_of(sep)})"
        return tuple(_apply(piece, f"{expression}[{index}]") for index in range(3))


def pieces_of(text: str) -> tuple[Piece, ...]:
    """The constants and variables that a text consists of."""
    return lift(text)._pieces


def lift(text: str) -> SymbolicText:
    """The text as a symbolic one; plain and tracked text consists of constants."""
    if isinstance(text, SymbolicText):
        return text
    if type(text) is not TrackedText:
        if type(text) is not str:
            raise TraceAborted(f"a text of type {type(text).__name__}")
        return SymbolicText([Piece(text=text, origin=COMPUTED)])
    pieces, position = [], 0
    for length, origin in text._runs:
        pieces.append(Piece(text=str.__getitem__(text, slice(position, position + length)), origin=origin))
        position += length
    return SymbolicText(pieces)


def symbolic_literal(text: str) -> SymbolicText:
    """As `provenance.literal`."""
    return SymbolicText([Piece(text=text, origin=TEMPLATE)])


def symbolic_concat(texts: Iterable[str]) -> SymbolicText:
    """As `provenance.concat`."""
    return SymbolicText([piece for text in texts for piece in lift(text)._pieces])


def symbolic_inherit_origin(text: str, sources: Iterable[Any]) -> SymbolicText:
    """As `provenance.inherit_origin`."""
    lifted = lift(text)
    if all(piece.origin != COMPUTED for piece in lifted._pieces):
        return lifted
    origin = common_origin([source._texts() if isinstance(source, SymbolicList) else source for source in sources])
    pieces = lifted._pieces
    return SymbolicText([replace(piece, origin=origin) if piece.origin == COMPUTED else piece for piece in pieces])


def depends_on_data(value: Any) -> bool:
    """Whether a value may differ between the examples of a shape."""
    if isinstance(value, SymbolicText):
        return any(piece.variable for piece in value._pieces)
    if isinstance(value, Mapping):
        return any(depends_on_data(key) or depends_on_data(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(depends_on_data(item) for item in value)
    return not (value is None or isinstance(value, (str, int, float, range, Undefined)))


def expression_of(value: Any) -> str:
    """The Python expression that gives a value."""
    if isinstance(value, SymbolicText):
        terms = [piece.variable or repr(piece.text) for piece in value._pieces]
        return terms[0] if len(terms) == 1 else f"''.join(({', '.join(terms)}))" if terms else "''"
    if value is None or type(value) in (str, int, bool):
        return repr(value)
    if type(value) is tuple:
        return f"({''.join(f'{expression_of(item)}, ' for item in value)})"
    raise TraceAborted(f"a value of type {type(value).__name__} together with a text")


def guard_not_empty(piece: Piece) -> bool:
    """Record a guard on whether a variable is not empty; return its outcome."""
    assert piece.trace is not None
    return piece.trace.guard(piece.variable, bool(piece.text))


def _guard_comparison(operator: str, compare: Callable[[Any, Any], Any], left: Any, right: Any) -> bool:
    outcome = bool(compare(left, right))
    trace = _trace_of((left, right))
    return trace.guard(f"{expression_of(left)} {operator} {expression_of(right)}", outcome) if trace else outcome


def _apply(piece: Piece, expression: str) -> SymbolicText:
    """Record an operation on a variable; return its result, a variable of the same origin."""
    assert piece.trace is not None
    variable = piece.trace.operation(expression)
    return SymbolicText([replace(piece, text=_evaluate(expression, piece), variable=variable)])


def _evaluate(expression: str, piece: Piece) -> Any:
    """The value of an expression over a variable, for the recorded example."""
    return eval(expression, {"__builtins__": {}, piece.variable: piece.text})


def _trace_of(values: Iterable[Any]) -> Trace | None:
    """The trace of the variables in these values; None where there are only constants."""
    for value in values:
        if isinstance(value, SymbolicText):
            for piece in value._pieces:
                if piece.trace is not None:
                    return piece.trace
        elif isinstance(value, tuple) and (trace := _trace_of(value)):
            return trace
        elif isinstance(value, (SymbolicList, Mapping, list)):
            raise TraceAborted(f"a {type(value).__name__} together with a text")
    return None


def _abort_on_data(values: Iterable[Any]) -> None:
    for value in values:
        if depends_on_data(value):
            raise TraceAborted("a use of data that no guard expresses")


def _comparison(name: str, operator: str) -> Callable[..., Any]:
    """A comparison with another text: a guard."""
    method = getattr(str, name)

    def comparison(self: SymbolicText, other: object) -> Any:
        return _guard_comparison(operator, method, self, other) if isinstance(other, str) else NotImplemented

    return comparison


def _predicate(name: str) -> Callable[..., bool]:
    """A method of `str` that returns a bool: a guard."""
    method = getattr(str, name)

    def predicate(self: SymbolicText, *arguments: Any) -> bool:
        outcome = bool(method(self, *arguments))
        trace = _trace_of((self, *arguments))
        expression = f"{expression_of(self)}.{name}({', '.join(map(expression_of, arguments))})"
        return trace.guard(expression, outcome) if trace else outcome

    return predicate


def _transformation(name: str) -> Callable[..., str]:
    """A method of `str` that returns text: an operation on one variable, as pieces around it may change the result."""

    def transformed(self: SymbolicText, *arguments: Any) -> str:
        if not _trace_of((self, *arguments)):
            return lift(_as_tracked(getattr(TrackedText, name)(self, *arguments), self))
        piece = self._only_variable()
        _abort_on_data(arguments)
        return _apply(piece, f"{piece.variable}.{name}({', '.join(map(expression_of, arguments))})")

    return transformed


def _unmodelled(name: str) -> Callable[..., Any]:
    """A method without guards or operations: on constants it works as usual, on data it aborts the recording."""
    method = getattr(TrackedText, name)

    def unmodelled(self: SymbolicText, *arguments: Any, **options: Any) -> Any:
        _abort_on_data((self, *arguments, *options.values()))
        return lift_result(method(self, *arguments, **options), (self, *arguments, *options.values()))

    return unmodelled


def lift_result(value: Any, sources: Sequence[Any]) -> Any:
    """A value that was computed from constants alone, with its texts as symbolic ones."""
    if isinstance(value, str):
        return symbolic_inherit_origin(value, sources)
    if type(value) in (list, tuple):
        return type(value)(lift_result(item, sources) for item in value)
    if value is None or value is NotImplemented or isinstance(value, (bool, int, float)):
        return value
    raise TraceAborted(f"a {type(value).__name__}")


def _aborting(self: SymbolicText, *_: Any, **__: Any) -> Any:
    raise TraceAborted("a method that is not modelled")


def _as_tracked(text: str, source: SymbolicText) -> str:
    return text if isinstance(text, TrackedText) else symbolic_inherit_origin(text, (source,))


_OPERATORS = (*COMPARISONS, "__mul__", "__rmul__", "__mod__", "__rmod__", "__format__", "__repr__", "__getnewargs__")
_METHODS = {
    # The sandbox guards the first two by their names.
    **dict.fromkeys(("format", "format_map", "maketrans", "translate"), _aborting),
    **{name: _comparison(name, operator) for name, operator in COMPARISONS.items()},
    **{name: _transformation(name) for name in ("lower", "upper", "title", "capitalize", "swapcase", "casefold")},
    **{name: _transformation(name) for name in ("removeprefix", "removesuffix")},
    **{name: _predicate(name) for name in ("startswith", "endswith", *(n for n in dir(str) if n.startswith("is")))},
}
for _name in (*dir(str), *_OPERATORS):
    # This also covers every other method of `str`, and those that later versions of Python add.
    if _name not in vars(SymbolicText) and (not _name.startswith("_") or _name in _OPERATORS):
        setattr(SymbolicText, _name, _METHODS.get(_name) or _unmodelled(_name))
