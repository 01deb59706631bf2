"""Texts of a plan, put together by hand: outlines, and what fills them."""

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
class Outline:
    """Pieces by hand; a text of None is a variable."""

    pieces: tuple[tuple[str | None, Origin], ...]
    target: tuple[int, int, int]
    """The pieces in front of which the target begins, its marker begins, and it ends."""
    message_weights: tuple[float, ...] | None = (1.0, 1.0)
    target_messages: frozenset[int] = frozenset({1})
    sample: int = 0

    @property
    def fixed(self) -> tuple[bool, ...]:
        return tuple(text is not None for text, _ in self.pieces)

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(origin for _, origin in self.pieces)


@dataclass(frozen=True, eq=False)
class Filled:
    """A text of an outline."""

    outline: Outline
    variables: tuple[str, ...]
    weights: tuple[float, ...] = (1.0, 1.0)

    @property
    def texts(self) -> tuple[str, ...]:
        given = iter(self.variables)
        return tuple(next(given) if text is None else text for text, _ in self.outline.pieces)

    def whole(self) -> RenderedText:
        texts = self.texts
        start, marker, end = (sum(map(len, texts[:piece])) for piece in self.outline.target)
        target = TargetSpan(message=1, start=start, marker_start=marker, end=end)
        runs = groupby(zip(texts, self.outline.origins, strict=True), key=itemgetter(1))
        plain = rendered(*(("".join(text for text, _ in run), origin) for origin, run in runs))
        return replace(plain, target_spans=(target,), message_weights=self.weights)

    def work_out(self, field: str) -> Any:
        return getattr(self.whole(), field)

    def deferred(self) -> RenderedText:
        return RenderedText.deferred(self, 0)


def outline(*pieces: tuple[str | None, Origin], **more: Any) -> Outline:
    """What is trained: from the answer on."""
    at = next(number for number, (_, origin) in enumerate(pieces) if origin == ANSWER)
    return Outline(pieces, (at, at + 1, len(pieces)), **more)
