"""The symbolic text of a whole rendering, in which the targets are found.

No variable in it is empty. So an offset at the edge of a piece, or within a constant, is the same position in every
example that passes the guards, and any two such offsets have the same order. A search that looks at pieces alone
therefore finds the same in every example. A search that compares characters records guards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from templatekit.formats.tracing.symbolic_text import Piece, SymbolicText, depends_on_data, guard_not_empty, pieces_of
from templatekit.formats.tracing.trace import TraceAborted
from templatekit.types import Span


class FinishedText(SymbolicText):
    """A symbolic text that may be measured, and sliced at the edges of variables."""

    __slots__ = ()

    def _plain(self) -> str:
        return self

    def __len__(self) -> int:
        return str.__len__(self)

    def __getitem__(self, key: Any) -> str:
        if not isinstance(key, slice):
            raise TraceAborted("a character of a finished text")
        start, stop, step = key.indices(len(self))
        assert step == 1
        pieces, position = [], 0
        for piece in self._pieces:
            first, last = max(start - position, 0), min(stop - position, len(piece.text))
            if first < last:
                if piece.variable and (first, last) != (0, len(piece.text)):
                    raise TraceAborted("a slice that starts or ends within a variable")
                pieces.append(replace(piece, text=piece.text[first:last]))
            position += len(piece.text)
        result = FinishedText(pieces)
        return result if depends_on_data(result) else str.__getitem__(result, slice(None))

    def __add__(self, other: str) -> FinishedText:
        return FinishedText([*self._pieces, *pieces_of(other)])

    def __radd__(self, other: str) -> FinishedText:
        return FinishedText([*pieces_of(other), *self._pieces])

    def isascii(self) -> bool:
        """Whether the recorded example's text is ASCII: the compiler checks every example's fields itself."""
        return str.isascii(self)

    def encode(self, *arguments: Any) -> bytes:
        return str.encode(self, *arguments)

    def startswith(self, prefix: Any, *bounds: Any) -> bool:
        """Whether the text starts so in every example that passes the guards; if False, it does in none of them."""
        assert not bounds
        return _starts_with([*self._pieces], [*pieces_of(prefix)])


def finish(text: SymbolicText) -> FinishedText:
    """Finish a text: record a guard on whether each variable is empty, and drop the empty ones."""
    return FinishedText([piece for piece in pieces_of(text) if not piece.variable or guard_not_empty(piece)])


def with_origins(text: str, spans: Sequence[Span]) -> FinishedText:
    """A text put together of finished texts, its constants with the origins of these spans, which their sum lacks."""
    pieces, end = [], 0
    remaining = iter(spans)
    span = next(remaining, None)
    for piece in pieces_of(text):
        start, end = end, end + len(piece.text)
        if piece.variable:
            pieces.append(piece)
            start = end
        while span is not None and (start < end or span.end <= start):
            if start < end:
                stop = min(end, span.end)
                pieces.append(replace(piece, text=piece.text[start - end :][: stop - start], origin=span.origin))
                start = stop
            if span.end <= start:
                span = next(remaining, None)
    return FinishedText(pieces)


def _starts_with(text: list[Piece], prefix: list[Piece]) -> bool:
    """Compare two texts piece by piece; record a guard where a variable is compared with something else."""
    text, prefix = text[::-1], prefix[::-1]  # stacks, whose next piece is the last
    while prefix:
        if not text:
            return False  # no piece is empty
        left, right = text.pop(), prefix.pop()
        if not left.variable and not right.variable:
            length = min(len(left.text), len(right.text))
            if left.text[:length] != right.text[:length]:
                return False
            for stack, piece in ((text, left), (prefix, right)):
                if len(piece.text) > length:
                    stack.append(replace(piece, text=piece.text[length:]))
        elif left.variable != right.variable:
            _guard_difference(left, text, right, prefix)
            return False
    return True


def _guard_difference(left: Piece, after_left: Sequence[Piece], right: Piece, after_right: Sequence[Piece]) -> None:
    """Record a guard that two texts, of which at least one starts with a variable, differ in a character.

    If they agree as far as they can be compared, only the variables decide how far, and the recording is aborted.
    """
    left_next, right_next = _next_constant(after_left), _next_constant(after_right)
    if left.variable and right.variable:
        one, two = f"({left.variable} + {left_next!r})", f"({right.variable} + {right_next!r})"
        expression = f"{one}.startswith({two}) or {two}.startswith({one})"
        left_text, right_text = left.text + left_next, right.text + right_next
        agree = left_text.startswith(right_text) or right_text.startswith(left_text)
    else:
        constant, variable, following = (right, left, left_next) if left.variable else (left, right, right_next)
        length = len(constant.text)
        expression = f"{constant.text!r}.startswith(({variable.variable}[:{length}] + {following!r})[:{length}])"
        agree = constant.text.startswith((variable.text[:length] + following)[:length])
    trace = left.trace or right.trace
    assert trace is not None
    if trace.guard(expression, agree):
        raise TraceAborted("texts that agree by chance")


def _next_constant(stack: Sequence[Piece]) -> str:
    """The text of the next piece if it is a constant, else empty."""
    return stack[-1].text if stack and not stack[-1].variable else ""
