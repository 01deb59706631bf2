"""Cuts the place that a finding shows out of its text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import pairwise

from templatekit.audit.values import AuditedSample, Excerpt, Hit, Run
from templatekit.types import RenderedText
from templatekit.views import PICTURES

BEFORE, AFTER = 100, 140
"""Characters shown on each side of the place."""
PLACE = 200
"""Of a longer place, the beginning is shown."""


def excerpt_of(hit: Hit, row: int | None) -> Excerpt:
    """The text around a hit's place; without a sample only its detail."""
    sample = hit.sample
    detail = visible(hit.detail)
    if sample is None:
        return Excerpt(row=row, detail=detail)
    length = len(sample.rendered.text)
    if hit.start is None:
        place, window = None, (0, min(BEFORE + AFTER, length))
    else:
        place = (hit.start, min(hit.end, hit.start + PLACE))
        # Of a place that is cut, nothing behind it is shown.
        window = (max(0, place[0] - BEFORE), min(length, place[1] + AFTER) if place[1] == hit.end else place[1])
    runs = tuple(_runs(sample, window, place))
    return Excerpt(row=row, detail=detail, runs=runs, cut_left=window[0] > 0, cut_right=window[1] < length)


def visible(text: str) -> str:
    """Control characters as pictures, and what would reorder or hide its neighbours by its number."""
    text = text.translate(PICTURES)
    if text.isascii():
        return text
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _HIDDEN else c for c in text)


_HIDDEN = {"Cf", "Co", "Cs", "Zl", "Zp"}
"""Format and private characters, halves of surrogate pairs, and separators of lines and paragraphs."""


def _runs(sample: AuditedSample, window: tuple[int, int], place: tuple[int, int] | None) -> Iterator[Run]:
    rendered = sample.rendered
    edges = {*window, *(place or ())}
    edges |= {edge for span in rendered.spans for edge in (span.start, span.end)}
    edges |= {edge for span in sample.losses for edge in (span.start, span.end)}
    for start, end in pairwise(sorted(edge for edge in edges if window[0] <= edge <= window[1])):
        origin = next(span.origin for span in rendered.spans if span.end > start)
        if place == (start, start):
            yield Run(text="", kind=origin.kind, origin=str(origin), trained=False, here=True)
        yield Run(
            text=visible(rendered.text[start:end]),
            kind=origin.kind,
            origin=str(origin),
            trained=sample.trains(start, start + 1),
            here=place is not None and place[0] <= start < place[1],
        )
    if place == (window[1], window[1]):
        yield _empty_place(rendered)


def _empty_place(rendered: RenderedText) -> Run:
    origin = rendered.spans[-1].origin if rendered.spans else None
    return Run(text="", kind=origin.kind if origin else "template", origin=str(origin or ""), trained=False, here=True)
