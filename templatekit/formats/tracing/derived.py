"""What templates count about texts: the pieces of a split one, and its length. Both are asked when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from templatekit.formats.tracing.trace import Tape, Unplannable


class _NoMore:
    """Refuses whatever else may be done with a value."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise Unplannable(f"{name} of a {type(self).__name__}")

    def _refused(self, *_: Any) -> Any:
        raise Unplannable(f"an operation on a {type(self).__name__}")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refused
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refused
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = _refused
    __neg__ = __pos__ = __abs__ = __int__ = __float__ = __index__ = _refused
    __hash__ = __repr__ = __str__ = __format__ = _refused


class Split(_NoMore):
    """The pieces of a split text, as a list."""

    __slots__ = ("_code", "_count", "_filled", "_make", "_tape")

    def __init__(self, tape: Tape, code: str, count: int, make: Callable[[str], str], *, filled: bool) -> None:
        """`make` gives the text for an expression; `filled` where there is a first and a last piece in any case."""
        self._tape, self._code, self._count, self._make, self._filled = tape, code, count, make, filled

    def __getitem__(self, key: Any) -> Any:
        if self._filled and type(key) is int and key in (0, -1):
            return self._make(f"{self._code}[{key}]")
        return self._items()[key]

    def _items(self) -> list[str]:
        self._tape.ask(f"len({self._code}) == {self._count}", True)
        return [self._make(f"{self._code}[{place}]") for place in range(self._count)]

    def __len__(self) -> int:
        return len(self._items())

    def __iter__(self) -> Iterator[str]:
        return iter(self._items())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._items())

    def __bool__(self) -> bool:
        return self._filled or bool(self._items())

    def __contains__(self, item: object) -> bool:
        return item in self._items()


class Length(_NoMore):
    """How long a text is, to be compared with a number."""

    __slots__ = ("_code", "_tape", "_text")

    def __init__(self, tape: Tape, text: str, code: str) -> None:
        """`text` answers for itself whether it is empty."""
        self._tape, self._text, self._code = tape, text, code

    def __bool__(self) -> bool:
        return bool(self._text)

    def _compared(self, operator: str, other: Any, outcome: Callable[[int, int], bool]) -> bool:
        if type(other) is not int:
            raise Unplannable("a length beside what is no plain number")
        if other == (1 if operator in (">=", "<") else 0):  # none at all, in other words
            return bool(self._text) if operator in (">", ">=", "!=") else not self._text
        return self._tape.ask(f"len({self._code}) {operator} {other}", outcome(str.__len__(self._text), other))

    def __eq__(self, other: object) -> bool:
        return self._compared("==", other, int.__eq__)

    def __ne__(self, other: object) -> bool:
        return self._compared("!=", other, int.__ne__)

    def __lt__(self, other: object) -> bool:
        return self._compared("<", other, int.__lt__)

    def __le__(self, other: object) -> bool:
        return self._compared("<=", other, int.__le__)

    def __gt__(self, other: object) -> bool:
        return self._compared(">", other, int.__gt__)

    def __ge__(self, other: object) -> bool:
        return self._compared(">=", other, int.__ge__)

    __hash__ = _NoMore.__hash__
