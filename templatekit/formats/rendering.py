"""A rendered text with its spans, and functions that search it: for literals, a message's own characters, bad text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from templatekit.errors import RecordError, shorten
from templatekit.formats.provenance import TrackedText, plain_text, spans_of
from templatekit.types import TEMPLATE, Origin, Span


class Rendering(NamedTuple):
    """A rendered text and the origins of its characters."""

    text: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, text: TrackedText) -> Rendering:
        """The rendering of a tracked text, as a plain text and its spans."""
        return cls(plain_text(text), spans_of(text))

    @classmethod
    def literal(cls, text: str) -> Rendering:
        """A literal of the template."""
        return cls.piece(text, TEMPLATE)

    @classmethod
    def piece(cls, text: str, origin: Origin) -> Rendering:
        """A text with one origin."""
        return cls(text, (Span(start=0, end=len(text), origin=origin),) if text else ())

    def cut(self, length: int) -> Rendering:
        """The first `length` characters."""
        spans = self.spans[: bisect_left(self.spans, length, key=attrgetter("end")) + 1]
        if spans and spans[-1].end > length:
            spans = (*spans[:-1], replace(spans[-1], end=length))
        return Rendering(self.text[:length], spans if length else ())

    def ending(self) -> Rendering:
        """The end that the template wrote, after the last character of another origin."""
        first = next((i for i in range(len(self.spans), 0, -1) if not self.spans[i - 1].origin.is_template), 0)
        start = self.spans[first].start if first < len(self.spans) else len(self.text)
        return Rendering(self.text[start:], tuple(_moved(span, -start) for span in self.spans[first:]))

    def tail(self, start: int) -> Rendering:
        """The characters from `start` on."""
        if start >= len(self.text):
            return Rendering("", ())
        first = bisect_right(self.spans, start, key=attrgetter("end"))
        spans = [_moved(span, -start) for span in self.spans[first:]]
        spans[0] = replace(spans[0], start=0)
        return Rendering(self.text[start:], tuple(spans))

    def followed_by(self, end: Rendering) -> Rendering:
        """This rendering with another one behind it."""
        first, second = self.spans, tuple(_moved(span, len(self.text)) for span in end.spans)
        if first and second and first[-1].origin == second[0].origin:  # one run of characters is one span
            first, second = first[:-1], (replace(first[-1], end=second[0].end), *second[1:])
        return Rendering(self.text + end.text, first + second)

    def literal_from(self, start: int, *, header: bool = False) -> str:
        """The characters that the template wrote from `start` on, up to the first of another origin.

        With `header`, the role and the name of a message do not end it.
        """
        end = start
        for span in self.spans[bisect_right(self.spans, start, key=attrgetter("end")) :]:
            if not span.origin.is_template and not (header and span.origin.in_header):
                break
            end = span.end
        return self.text[start:end]

    def own_range(self, message: int) -> tuple[int, int] | None:
        """The range from the first to the last of a message's own characters; None if it has none.

        The range leaves out the message's header. It includes computed text directly after those characters, such as a
        number in a tool call.
        """
        own_range: tuple[int, int] | None = None
        adjacent = False
        for span in self.spans:
            origin = span.origin
            if origin.message == message and not origin.in_header:
                own_range = (own_range[0] if own_range else span.start, span.end)
                adjacent = True
            elif own_range and adjacent:
                if origin.kind == "computed":
                    own_range = (own_range[0], span.end)
                adjacent = origin.kind == "computed" or origin.is_template
        return own_range

    def check_encodable(self) -> None:
        """Raise `RecordError` for half of a surrogate pair, which JSON can spell but no tokenizer accepts."""
        if self.text.isascii():
            return
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            origin = next(span.origin for span in self.spans if span.end > error.start)
            raise RecordError(
                f"half of a surrogate pair; found {shorten(self.text[error.start])}; expected Unicode text",
                field=str(origin),
                reason="bad_text",
            ) from None


def _moved(span: Span, distance: int) -> Span:
    return Span(start=span.start + distance, end=span.end + distance, origin=span.origin)
