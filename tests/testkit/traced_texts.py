"""Traced texts and their layouts, written by hand instead of by a compiled trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from templatekit import RenderedText
from templatekit.types import Origin, TargetSpan, field_origin
from testkit.by_hand import rendered

USER, ANSWER, ROLE = field_origin("content", 0), field_origin("content", 1), field_origin("role", 1)


@dataclass(frozen=True, eq=False)
class TracedLayout:
    """A layout from its pieces; a text of None is a variable."""

    pieces: tuple[tuple[str | None, Origin], ...]
    target: tuple[int, int, int]
    """Indices of the pieces before which the target starts, its end marker starts, and the target ends."""
    message_weights: tuple[float, ...] | None = (1.0, 1.0)
    target_messages: frozenset[int] = frozenset({1})
    sample: int = 0

    @property
    def is_constant(self) -> tuple[bool, ...]:
        return tuple(text is not None for text, _ in self.pieces)

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(origin for _, origin in self.pieces)


@dataclass(frozen=True, eq=False)
class TracedText:
    """A text of a layout, from its variables."""

    layout: TracedLayout
    variables: tuple[str, ...]
    weights: tuple[float, ...] = (1.0, 1.0)

    @property
    def pieces(self) -> tuple[str, ...]:
        given = iter(self.variables)
        return tuple(next(given) if text is None else text for text, _ in self.layout.pieces)

    def eager(self) -> RenderedText:
        """The rendered text with all fields set, as interpreting gives it."""
        pieces = self.pieces
        start, marker, end = (sum(map(len, pieces[:index])) for index in self.layout.target)
        target = TargetSpan(message=1, start=start, marker_start=marker, end=end)
        runs = groupby(zip(pieces, self.layout.origins, strict=True), key=itemgetter(1))
        plain = rendered(*(("".join(text for text, _ in run), origin) for origin, run in runs))
        return replace(plain, target_spans=(target,), message_weights=self.weights)

    def compute(self, field: str) -> Any:
        return getattr(self.eager(), field)

    def lazy(self) -> RenderedText:
        """The rendered text as a compiled trace gives it."""
        return RenderedText.from_trace(self, 0)


def layout(*pieces: tuple[str | None, Origin], **more: Any) -> TracedLayout:
    """A layout whose target starts with the answer and goes to the end."""
    answer = next(index for index, (_, origin) in enumerate(pieces) if origin == ANSWER)
    return TracedLayout(pieces, (answer, answer + 1, len(pieces)), **more)
