"""Where data stands in a rendered text, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from templatekit.types import Origin, RenderedText


class Region(NamedTuple):
    """Neighbouring characters that come from data, of one field or of several."""

    start: int
    end: int


def data_regions(rendered: RenderedText, *, headers: bool = True) -> Iterator[Region]:
    """The longest runs of text from data, in order. Without `headers`, roles and names count as the template's."""
    start = end = 0
    for span in rendered.spans:
        if span.origin.is_template or (span.origin.in_header and not headers):
            if end > start:
                yield Region(start, end)
            start = end = span.end
        else:
            end = span.end
    if end > start:
        yield Region(start, end)


def origin_at(rendered: RenderedText, position: int) -> Origin:
    """Where a character comes from."""
    return next(span.origin for span in rendered.spans if position < span.end)


def field_name(rendered: RenderedText, origin: Origin) -> str:
    """A field in words that are the same for every row: `user content`, `tools`."""
    if origin.message is None:
        return origin.field or "computed text"
    return f"{rendered.roles[origin.message]} {origin.field}"
