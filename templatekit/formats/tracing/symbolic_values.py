"""Symbolic values other than text: the list that `split` returns, and the length of a text.

Both record their guard when a template uses them, and abort the recording on everything that is not modelled here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partialmethod
from typing import Any

from templatekit.formats.tracing.trace import Trace, TraceAborted

COMPARISONS = {"__eq__": "==", "__ne__": "!=", "__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">="}
"""The operator of each comparison method."""


class _AbortsByDefault:
    """Aborts the recording on every operation that a subclass does not define."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise TraceAborted(f"{name} of a {type(self).__name__}")

    def _abort(self, *_: Any) -> Any:
        raise TraceAborted(f"an operation on a {type(self).__name__}")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _abort
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _abort
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = _abort
    __neg__ = __pos__ = __abs__ = __int__ = __float__ = __index__ = _abort
    __hash__ = __repr__ = __str__ = __format__ = _abort


class SymbolicList(_AbortsByDefault):
    """The result of `split` on a variable. Reading more than its first or last text records a guard on its length."""

    __slots__ = ("_expression", "_length", "_never_empty", "_operation", "_trace")

    def __init__(
        self, trace: Trace, expression: str, length: int, operation: Callable[[str], str], *, never_empty: bool
    ) -> None:
        """`operation` gives the text of an expression. A `never_empty` list always has a first and a last text."""
        self._trace, self._expression, self._length = trace, expression, length
        self._operation, self._never_empty = operation, never_empty

    def __getitem__(self, key: Any) -> Any:
        if self._never_empty and type(key) is int and key in (0, -1):
            return self._operation(f"{self._expression}[{key}]")
        return self._texts()[key]

    def _texts(self) -> list[str]:
        # Templates cannot call this method: the sandbox refuses names with an underscore.
        self._trace.guard(f"len({self._expression}) == {self._length}", True)
        return [self._operation(f"{self._expression}[{index}]") for index in range(self._length)]

    def __len__(self) -> int:
        return len(self._texts())

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._texts())

    def __bool__(self) -> bool:
        return self._never_empty or bool(self._texts())


class SymbolicLength(_AbortsByDefault):
    """The length of a symbolic text. Each comparison with a number records a guard."""

    __slots__ = ("_expression", "_text", "_trace")

    def __init__(self, trace: Trace, text: str, expression: str) -> None:
        """`text` is symbolic, and `expression` gives it; the text itself records the guard on whether it is empty."""
        self._trace, self._text, self._expression = trace, text, expression

    def __bool__(self) -> bool:
        return bool(self._text)

    def _compare(self, method: str, other: Any) -> bool:
        if type(other) is not int:
            raise TraceAborted("a length compared with something other than an int")
        operator = COMPARISONS[method]
        if other == (1 if operator in (">=", "<") else 0):  # asks whether the text is empty
            return bool(self._text) if operator in (">", ">=", "!=") else not self._text
        outcome = getattr(int, method)(str.__len__(self._text), other)
        return self._trace.guard(f"len({self._expression}) {operator} {other}", outcome)


for _name in COMPARISONS:
    setattr(SymbolicLength, _name, partialmethod(SymbolicLength._compare, _name))
