"""A rendered text with its spans, and functions that search it: for literals, a message's own characters, bad text."""

from __future__ import annotations

from typing import NamedTuple

from templatekit.errors import RecordError, shorten
from templatekit.formats.provenance import TrackedText, plain_text, spans_of
from templatekit.types import Span


class Rendering(NamedTuple):
    """A rendered text and the origins of its characters."""

    text: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, text: TrackedText) -> Rendering:
        """The rendering of a tracked text, as a plain text and its spans."""
        return cls(plain_text(text), spans_of(text))

    def literal_from(self, start: int) -> str:
        """The characters that the template wrote from `start` on, up to the first of another origin."""
        end = start
        for span in self.spans:
            if span.end > end:
                if not span.origin.is_template:
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
            if span.origin.message == message and not span.origin.in_header:
                own_range = (own_range[0] if own_range else span.start, span.end)
                adjacent = True
            elif own_range and adjacent and span.origin.kind == "computed":
                own_range = (own_range[0], span.end)
            elif not span.origin.is_template:
                adjacent = False
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
