"""Text that stands for any text: what a template does with it is written down, so that it holds for other examples.

A `Symbolic` text is a `Traced` one, with the characters of one example, in pieces that are literals or *variables*: a
field of the data, or what a chain of pure operations makes of one (`content0.strip()`). Everything that a template can
see of a text goes through the methods here. Each either gives symbolic text again, or puts what was asked and what came
of it on a `Tape`, or raises `Unplannable`. So whatever example gives the same answers to all questions of a tape is
rendered to the same pieces, with its own texts in the variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jinja2 import Undefined

from templatekit.formats.provenance import Traced, common_origin, concat
from templatekit.formats.tracing.derived import Length, Split
from templatekit.formats.tracing.trace import LONGEST, Tape, Unplannable
from templatekit.types import COMPUTED, TEMPLATE, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of characters: a literal, or a variable of a tape."""

    text: str
    """The variable's, in the example that is recorded."""
    origin: Origin
    name: str = ""
    """The variable; empty for a literal."""
    tape: Tape | None = None


class Symbolic(Traced):
    """A text in pieces. Literals in it are not empty; a variable may be, until that is asked."""

    __slots__ = ("_pieces",)
    _pieces: tuple[Piece, ...]

    def __new__(cls, pieces: Iterable[Piece] = ()) -> Symbolic:
        joined: list[Piece] = []
        for piece in pieces:
            if not piece.name and not piece.text:
                continue
            last = joined[-1] if joined else None
            if last and not last.name and not piece.name and last.origin == piece.origin:
                joined[-1] = replace(last, text=last.text + piece.text)
            else:
                joined.append(piece)
        if len(joined) > LONGEST:
            raise Unplannable("too many pieces")
        runs = concat(Traced(p.text, ((len(p.text), p.origin),)) for p in joined if p.text)._runs
        self = super().__new__(cls, "".join(piece.text for piece in joined), runs)
        assert isinstance(self, Symbolic)
        self._pieces = tuple(joined)
        return self

    def _variable(self) -> Piece:
        """The only piece: operations on several would have to find out what falls into which."""
        if len(self._pieces) != 1 or not self._pieces[0].name:
            raise Unplannable("an operation on a text made of several")
        return self._pieces[0]

    def __bool__(self) -> bool:
        if any(not piece.name for piece in self._pieces):
            return True
        return any(holds_text(piece) for piece in self._pieces)

    def __hash__(self) -> int:
        _refuse_data((self,))
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        return _asked("==", str.__eq__, self, other) if isinstance(other, str) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return _asked("!=", str.__ne__, self, other) if isinstance(other, str) else NotImplemented

    def __lt__(self, other: str) -> bool:
        return _asked("<", str.__lt__, self, other) if isinstance(other, str) else NotImplemented

    def __le__(self, other: str) -> bool:
        return _asked("<=", str.__le__, self, other) if isinstance(other, str) else NotImplemented

    def __gt__(self, other: str) -> bool:
        return _asked(">", str.__gt__, self, other) if isinstance(other, str) else NotImplemented

    def __ge__(self, other: str) -> bool:
        return _asked(">=", str.__ge__, self, other) if isinstance(other, str) else NotImplemented

    def __contains__(self, other: object) -> bool:
        if not isinstance(other, str):
            raise TypeError(f"'in <string>' requires string as left operand, not {type(other).__name__}")
        return _asked("in", lambda part, whole: str.__contains__(whole, part), other, self)

    def __len__(self) -> int:
        _refuse_data((self,))
        return str.__len__(self)

    def __iter__(self) -> Iterator[str]:
        _refuse_data((self,))
        return iter([lift(character) for character in Traced.__iter__(self)])

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: Any) -> str:
        if not _tape_of((self, key)):
            return lift(Traced.__getitem__(self, key))
        variable = self._variable()
        if isinstance(key, slice):
            parts = (key.start, key.stop, key.step)
            if any(type(part) not in (int, type(None)) for part in parts):
                raise Unplannable("a slice by what is no number")
            return _made(variable, f"{variable.name}[{':'.join('' if p is None else str(p) for p in parts)}]")
        if type(key) is not int:
            if hasattr(key, "__index__"):
                raise Unplannable("an index that is no plain number")
            raise TypeError("string indices must be integers")
        assert variable.tape is not None
        known = -str.__len__(self) <= key < str.__len__(self)
        enough = f"len({variable.name}) {'>' if key >= 0 else '>='} {key if key >= 0 else -key}"
        if not variable.tape.ask(enough, known):
            raise IndexError("string index out of range")
        return _made(variable, f"{variable.name}[{key}]")

    def lstrip(self, chars: str | None = None) -> str:
        return self._stripped("lstrip", chars)

    def rstrip(self, chars: str | None = None) -> str:
        return self._stripped("rstrip", chars)

    def strip(self, chars: str | None = None) -> str:
        if len(self._pieces) == 1:
            return self._stripped("strip", chars)
        return self.lstrip(chars).rstrip(chars)

    def _stripped(self, method: str, chars: str | None) -> Symbolic:
        """Strips the outermost piece, and, where nothing is left of it, the next."""
        _refuse_data((chars,))
        pieces = list(self._pieces)
        place = -1 if method == "rstrip" else 0
        argument = "" if chars is None else code_of(chars)
        while pieces:
            piece = pieces[place]
            if piece.name:
                stripped = _made(piece, f"{piece.name}.{method}({argument})")._pieces[0]
                left = len(pieces) == 1 or holds_text(stripped)
            else:
                stripped = replace(piece, text=getattr(piece.text, method)(chars))
                left = bool(stripped.text)
            if left:
                pieces[place] = stripped
                break
            del pieces[place]
        return Symbolic(pieces)

    def replace(self, old: str, new: str, count: Any = -1) -> str:
        if not _tape_of((self, old, new)):
            return lift(Traced.replace(self, old, new, count))
        if old not in self:
            return self
        if new or not old:
            raise Unplannable("a text in which another is put in")
        _refuse_data((old, count))
        variable = self._variable()
        return _made(variable, f"{variable.name}.replace({code_of(old)}, '', {code_of(count)})")

    def join(self, pieces: Iterable[str]) -> str:
        texts: list[str] = []
        for piece in pieces:
            texts += (self, piece) if texts else (piece,)
        return joined(texts)

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> Any:
        return self._split("split", sep, maxsplit)

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> Any:
        return self._split("rsplit", sep, maxsplit)

    def _split(self, method: str, sep: str | None, maxsplit: Any) -> Any:
        if not _tape_of((self, sep)):
            return [lift(piece) for piece in getattr(Traced, method)(self, sep, maxsplit)]
        if sep is not None and not sep:
            raise ValueError("empty separator")
        _refuse_data((sep, maxsplit))
        variable = self._variable()
        assert variable.tape is not None
        code = f"{variable.name}.{method}({code_of(sep)}, {code_of(maxsplit)})"
        count = len(_value_of(code, variable))
        return Split(variable.tape, code, count, partial(_made, variable), filled=sep is not None)

    def _length(self) -> int | Length:
        """What the filter `length` gives."""
        tape = _tape_of((self,))
        return Length(tape, self, code_of(self)) if tape else str.__len__(self)

    def partition(self, sep: str) -> Any:
        return self._cut_in_three("partition", sep)

    def rpartition(self, sep: str) -> Any:
        return self._cut_in_three("rpartition", sep)

    def _cut_in_three(self, method: str, sep: str) -> Any:
        if not _tape_of((self, sep)):
            return tuple(lift(piece) for piece in getattr(Traced, method)(self, sep))
        if not sep:
            raise ValueError("empty separator")
        _refuse_data((sep,))
        variable = self._variable()
        return tuple(_made(variable, f"{variable.name}.{method}({code_of(sep)})[{place}]") for place in range(3))


def pieces_of(text: str) -> tuple[Piece, ...]:
    """The literals and variables that a text consists of."""
    return lift(text)._pieces


def lift(text: str) -> Symbolic:
    """Any text as a symbolic one."""
    if isinstance(text, Symbolic):
        return text
    if type(text) is not Traced:
        if type(text) is not str:
            raise Unplannable(f"a text of type {type(text).__name__}")
        return Symbolic([Piece(text=text, origin=COMPUTED)])
    pieces, position = [], 0
    for length, origin in text._runs:
        pieces.append(Piece(text=str.__getitem__(text, slice(position, position + length)), origin=origin))
        position += length
    return Symbolic(pieces)


def written(text: str) -> Symbolic:
    """Text that the template wrote."""
    return Symbolic([Piece(text=text, origin=TEMPLATE)])


def joined(texts: Iterable[str]) -> Symbolic:
    """The texts in one."""
    return Symbolic([piece for text in texts for piece in lift(text)._pieces])


def laid(text: str, sources: Iterable[Any]) -> Symbolic:
    """As `provenance.attribute`."""
    found = lift(text)
    if all(piece.origin != COMPUTED for piece in found._pieces):
        return found
    origin = common_origin([source._items() if isinstance(source, Split) else source for source in sources])
    pieces = found._pieces
    return Symbolic([replace(piece, origin=origin) if piece.origin == COMPUTED else piece for piece in pieces])


def holds_data(value: Any) -> bool:
    """Whether a value may be another for another example."""
    if isinstance(value, Symbolic):
        return any(piece.name for piece in value._pieces)
    if isinstance(value, Mapping):
        return any(holds_data(key) or holds_data(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(holds_data(item) for item in value)
    return not (value is None or isinstance(value, (str, int, float, range, Undefined)))


def code_of(value: Any) -> str:
    """A value in Python's words."""
    if isinstance(value, Symbolic):
        words = [piece.name or repr(piece.text) for piece in value._pieces]
        return words[0] if len(words) == 1 else f"''.join(({', '.join(words)}))" if words else "''"
    if value is None or type(value) in (str, int, bool):
        return repr(value)
    if type(value) is tuple:
        return f"({''.join(f'{code_of(item)}, ' for item in value)})"
    raise Unplannable(f"a value of type {type(value).__name__} beside a text")


def holds_text(piece: Piece) -> bool:
    """Asks whether a variable is not empty."""
    assert piece.tape is not None
    return piece.tape.ask(piece.name, bool(piece.text))


def _asked(operator: str, compare: Callable[[Any, Any], Any], left: Any, right: Any) -> bool:
    outcome = bool(compare(left, right))
    tape = _tape_of((left, right))
    return tape.ask(f"{code_of(left)} {operator} {code_of(right)}", outcome) if tape else outcome


def _made(variable: Piece, code: str) -> Symbolic:
    """A variable made of another."""
    assert variable.tape is not None
    name = variable.tape.make(code)
    return Symbolic([replace(variable, text=_value_of(code, variable), name=name)])


def _value_of(code: str, variable: Piece) -> Any:
    """What an expression over a variable comes to in the example."""
    return eval(code, {"__builtins__": {}, variable.name: variable.text})


def _tape_of(values: Iterable[Any]) -> Tape | None:
    """The tape of the texts among values; None where all are literal."""
    for value in values:
        if isinstance(value, Symbolic):
            for piece in value._pieces:
                if piece.tape is not None:
                    return piece.tape
        elif isinstance(value, tuple) and (tape := _tape_of(value)):
            return tape
        elif isinstance(value, (Split, Mapping, list)):
            raise Unplannable(f"a {type(value).__name__} beside a text")
    return None


def _refuse_data(values: Iterable[Any]) -> None:
    for value in values:
        if holds_data(value):
            raise Unplannable("what is not written down")


def _predicate(name: str) -> Callable[..., bool]:
    method = getattr(str, name)

    def asked(self: Symbolic, *arguments: Any) -> bool:
        outcome = bool(method(self, *arguments))
        tape = _tape_of((self, *arguments))
        code = f"{code_of(self)}.{name}({', '.join(map(code_of, arguments))})"
        return tape.ask(code, outcome) if tape else outcome

    return asked


def _transformation(name: str) -> Callable[..., str]:
    """Of one variable into another: where it stands among other pieces, it may depend on them."""

    def transformed(self: Symbolic, *arguments: Any) -> str:
        if not _tape_of((self, *arguments)):
            return lift(_as_traced(getattr(Traced, name)(self, *arguments), self))
        variable = self._variable()
        _refuse_data(arguments)
        return _made(variable, f"{variable.name}.{name}({', '.join(map(code_of, arguments))})")

    return transformed


def _unmodelled(name: str) -> Callable[..., Any]:
    """On literal text as ever, on data not at all."""
    method = getattr(Traced, name)

    def unmodelled(self: Symbolic, *arguments: Any, **options: Any) -> Any:
        _refuse_data((self, *arguments, *options.values()))
        return lifted(method(self, *arguments, **options), (self, *arguments, *options.values()))

    return unmodelled


def lifted(value: Any, sources: Sequence[Any]) -> Any:
    """What was worked out of literals alone, with the texts in it as symbolic ones."""
    if isinstance(value, str):
        return laid(value, sources)
    if type(value) in (list, tuple):
        return type(value)(lifted(item, sources) for item in value)
    if value is None or value is NotImplemented or isinstance(value, (bool, int, float)):
        return value
    raise Unplannable(f"a {type(value).__name__}")


def _unknown(self: Symbolic, *_: Any, **__: Any) -> Any:
    raise Unplannable("a method that is not done here")


def _as_traced(text: str, source: Symbolic) -> str:
    return text if isinstance(text, Traced) else laid(text, (source,))


_OPERATORS = ("__mul__", "__rmul__", "__mod__", "__rmod__", "__format__", "__repr__", "__getnewargs__")
_METHODS = {
    # The sandbox guards the first two by their names.
    **dict.fromkeys(("format", "format_map", "maketrans", "translate"), _unknown),
    **{name: _transformation(name) for name in ("lower", "upper", "title", "capitalize", "swapcase", "casefold")},
    **{name: _transformation(name) for name in ("removeprefix", "removesuffix")},
    **{name: _predicate(name) for name in ("startswith", "endswith", *(n for n in dir(str) if n.startswith("is")))},
}
for _name in (*dir(str), *_OPERATORS):
    # Whatever else a text can be asked, in this version of Python or a later one.
    if _name not in vars(Symbolic) and (not _name.startswith("_") or _name in _OPERATORS):
        setattr(Symbolic, _name, _METHODS.get(_name) or _unmodelled(_name))
