"""The rows that rules examine: a record's samples, and what is known about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from templatekit import types
from templatekit.errors import RecordError
from templatekit.types import LossSpan, TokenizedExample

TEXT_FIELDS = ("content", "context", "reasoning")
"""The fields of a message that contain its text."""


class EncodingDifference(NamedTuple):
    """The ids of a text encoded in fragments and encoded as a whole, where the two differ."""

    cut: tuple[int, ...]
    whole: tuple[int, ...]


class RoundTripDifference(NamedTuple):
    """A field's text that encoding and decoding changes."""

    message: int
    field: str
    text: str
    decoded: str


class MatchingRow(NamedTuple):
    """A row of another data set that is equal or similar to a row of this one."""

    dataset: str
    row: int
    similarity: float | None = None
    """The estimated share of three-word sequences that both have; None where the match is exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedSample(types.Sample):
    """A sample, with the facts that need the tokenizer or the other rows."""

    loss_spans: tuple[LossSpan, ...]
    """The weights of all characters of the text, without gaps."""
    length: int
    """In tokens; in characters without a tokenizer."""
    trained_range: tuple[int, int] | None
    """Positions of the first and the last trained token (character without a tokenizer); None where nothing is
    trained."""
    encoding_difference: EncodingDifference | None = None
    round_trip_differences: tuple[RoundTripDifference, ...] = ()
    shortened: TokenizedExample | None = None
    """The sample as `--truncation` shortens it to `--max-length`; None where it fits, or would be dropped."""
    continued: bool = False
    """The row's next sample starts with all messages of this one. Rows are compared by their longest sample."""
    same_text: int | None = None
    """The first row with the same text."""
    same_prompt: int | None = None
    """The first row with the same text up to the last answer, but another answer."""
    shared_text: MatchingRow | None = None
    shared_prompt: MatchingRow | None = None
    nearly_shared: MatchingRow | None = None
    """The most similar row of the other data sets, where none has the same text."""

    def is_trained(self, start: int, end: int) -> bool:
        """Whether any character of `rendered.text[start:end]` has a loss weight above 0."""
        return any(span.weight > 0 for span in self.loss_spans if span.start < end and span.end > start)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedRow:
    """A record and its result: samples or an error."""

    number: int
    unread: Mapping[str, Any] = field(default_factory=dict)
    """The record's keys that the adapter does not read, with their values."""
    samples: tuple[AuditedSample, ...] = ()
    error: RecordError | None = None


def field_ranges(sample: AuditedSample) -> dict[tuple[int, str], tuple[int, int]]:
    """By message and field, the range of its characters in the rendered text."""
    ranges: dict[tuple[int, str], tuple[int, int]] = {}
    for span in sample.rendered.spans:
        origin = span.origin
        if origin.kind == "field" and origin.message is not None and origin.field is not None:
            start = ranges.get((origin.message, origin.field), (span.start, 0))[0]
            ranges[origin.message, origin.field] = (start, span.end)
    return ranges
