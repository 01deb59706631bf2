"""Cuts the text around an occurrence out of its sample, for the example of a finding."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from templatekit.audit.report import Excerpt, ExcerptRun
from templatekit.audit.rows import AuditedSample
from templatekit.audit.rule import Occurrence
from templatekit.types import TEMPLATE
from templatekit.views import visible

BEFORE, AFTER = 100, 140
"""Characters shown before and after the occurrence."""
MAX_MARKED_LENGTH = 200
"""Characters shown of the occurrence itself; only the start of a longer occurrence is shown."""


def excerpt_of(occurrence: Occurrence, row: int | None) -> Excerpt:
    """The text around an occurrence, or only the occurrence's detail if there is no sample."""
    sample = occurrence.sample
    detail = visible(occurrence.detail)
    if sample is None:
        return Excerpt(row=row, detail=detail)
    length = len(sample.rendered.text)
    if occurrence.start is None:
        marked, window = None, (0, min(BEFORE + AFTER, length))
    else:
        marked = (occurrence.start, min(occurrence.end, occurrence.start + MAX_MARKED_LENGTH))
        # If the occurrence itself is cut, no text after it is shown.
        end = min(length, marked[1] + AFTER) if marked[1] == occurrence.end else marked[1]
        window = (max(0, marked[0] - BEFORE), end)
    runs = tuple(_runs(sample, window, marked))
    return Excerpt(row=row, detail=detail, runs=runs, cut_left=window[0] > 0, cut_right=window[1] < length)


def _runs(sample: AuditedSample, window: tuple[int, int], marked: tuple[int, int] | None) -> Iterator[ExcerptRun]:
    rendered = sample.rendered

    def run(start: int, end: int, *, here: bool) -> ExcerptRun:
        origins = (span.origin for span in rendered.spans if span.end > start or span is rendered.spans[-1])
        origin = next(origins, TEMPLATE)  # a text without spans is empty
        trained = start < end and sample.is_trained(start, end)
        text = visible(rendered.text[start:end])
        return ExcerptRun(text=text, kind=origin.kind, origin=str(origin), trained=trained, here=here)

    edges = {*window, *(marked or ())}
    edges |= {edge for span in rendered.spans for edge in (span.start, span.end)}
    edges |= {edge for span in sample.loss_spans for edge in (span.start, span.end)}
    for start, end in pairwise(sorted(edge for edge in edges if window[0] <= edge <= window[1])):
        if marked == (start, start):
            yield run(start, start, here=True)
        yield run(start, end, here=marked is not None and marked[0] <= start < marked[1])
    if marked == (window[1], window[1]):
        yield run(window[1], window[1], here=True)
