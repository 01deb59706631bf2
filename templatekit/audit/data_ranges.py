"""Finds the characters of a rendered text that come from data, and the fields that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from templatekit.types import Origin, RenderedText


class DataRange(NamedTuple):
    """Consecutive characters that come from data, of one field or of several."""

    start: int
    end: int


def data_ranges(rendered: RenderedText, *, headers: bool = True) -> Iterator[DataRange]:
    """The longest ranges of text from data, in order. Without `headers`, roles and names count as template text."""
    start = end = 0
    for span in rendered.spans:
        if span.origin.is_template or (span.origin.in_header and not headers):
            if end > start:
                yield DataRange(start, end)
            start = end = span.end
        else:
            end = span.end
    if end > start:
        yield DataRange(start, end)


def origin_at(rendered: RenderedText, position: int) -> Origin:
    """The origin of a character."""
    return next(span.origin for span in rendered.spans if position < span.end)


def field_name(rendered: RenderedText, origin: Origin) -> str:
    """The name of a field, the same in every row: `user content`, `tools`."""
    if origin.message is None:
        return origin.field or "computed text"
    return f"{rendered.roles[origin.message]} {origin.field}"
