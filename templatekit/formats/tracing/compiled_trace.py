"""A compiled trace: makes the samples of every example that passes its guards, from the texts of their pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from sys import intern
from typing import Any, TypeAlias

from templatekit.formats.tracing.recorder import RecordedText, Recording
from templatekit.formats.tracing.symbolic_text import Piece, pieces_of
from templatekit.formats.tracing.trace import TraceAborted
from templatekit.types import Example, Message, Origin, RenderedText, Sample, Span, TargetSpan

_Position: TypeAlias = tuple[int, int]
"""The index of a piece, and an offset in it."""


class SampleLayout:
    """The pieces of one sample's text, and the positions of its spans and targets; a `TracedLayout`."""

    def __init__(
        self, recorded: RecordedText, sample: int, samples: int, history: int, weights: tuple[float, ...] | None
    ) -> None:
        self.message_count = recorded.message_count
        self.message_weights = weights and weights[: recorded.message_count]
        self.sample, self.samples, self.history = sample, samples, history
        pieces = pieces_of(recorded.text)
        self.expressions = [piece.variable or repr(intern(piece.text)) for piece in pieces]
        """The Python expression of each piece: a variable, or the text of a constant."""
        self.is_constant = tuple(not piece.variable for piece in pieces)
        self.origins = tuple(piece.origin for piece in pieces)
        self.target_messages = frozenset(target.message for target in recorded.targets)
        self._spans = [*_last_pieces(pieces)]
        starts = [0, *accumulate(len(piece.text) for piece in pieces)]
        self._targets = [
            (
                target.message,
                _position(target.start, starts, pieces),
                _position(target.marker_start, starts, pieces),
                _position(target.end, starts, pieces),
            )
            for target in recorded.targets
        ]

    def spans(self, pieces: Sequence[str]) -> tuple[Span, ...]:
        """The spans of an example's text."""
        ends = [*accumulate(map(len, pieces))]
        spans, start = [], 0
        for last, origin in self._spans:
            spans.append(Span(start=start, end=ends[last], origin=origin))
            start = ends[last]
        return tuple(spans)

    def targets(self, pieces: Sequence[str]) -> tuple[TargetSpan, ...]:
        """The targets in an example's text."""
        starts = [0, *accumulate(map(len, pieces))]
        return tuple(
            TargetSpan(
                message=message, start=starts[a] + start, marker_start=starts[b] + marker_start, end=starts[c] + end
            )
            for message, (a, start), (b, marker_start), (c, end) in self._targets
        )


class _TracedText:
    """Computes the fields of one `RenderedText`; a `TracedText`."""

    __slots__ = ("layout", "messages", "pieces")

    def __init__(self, layout: SampleLayout, pieces: tuple[str, ...], messages: tuple[Message, ...]) -> None:
        self.layout, self.pieces, self.messages = layout, pieces, messages

    def compute(self, field: str) -> Any:
        if field == "text":
            return "".join(self.pieces)
        if field == "spans":
            return self.layout.spans(self.pieces)
        if field == "target_spans":
            return self.layout.targets(self.pieces)
        messages = self.messages[: self.layout.message_count]
        if field == "message_weights":
            return tuple(message.weight for message in messages)
        if field == "roles":
            return tuple(message.role for message in messages)
        return getattr(self.layout, field)


class CompiledTrace:
    """The steps of a trace, and the layouts of the samples that it gives."""

    def __init__(self, recording: Recording) -> None:
        self.steps = recording.trace.steps
        self.uses = 0
        counts = [recorded.message_count for recorded in recording.texts]
        self.layouts = [
            SampleLayout(recorded, sample, len(counts), history, recording.weights)
            for sample, (recorded, history) in enumerate(zip(recording.texts, [0, *counts], strict=False))
        ]

    def samples(self, example: Example, texts: tuple[tuple[str, ...], ...], row: int) -> tuple[Sample, ...]:
        """The example's samples; `texts` has the pieces of each one's text."""
        samples = []
        for layout, pieces in zip(self.layouts, texts, strict=True):
            messages = example.messages
            whole = layout.message_count == len(messages)
            rendered = RenderedText.from_trace(_TracedText(layout, pieces, messages), row)
            own = example if whole else replace(example, messages=messages[: layout.message_count])
            samples.append(Sample(example=own, rendered=rendered))
        return tuple(samples)


def _last_pieces(pieces: Sequence[Piece]) -> Iterator[tuple[int, Origin]]:
    """For each span the index of its last piece, and its origin."""
    for index, piece in enumerate(pieces):
        if index + 1 == len(pieces) or pieces[index + 1].origin != piece.origin:
            yield index, piece.origin


def _position(offset: int, starts: Sequence[int], pieces: Sequence[Piece]) -> _Position:
    """The position of an offset in the recorded text; aborts within a variable, since its offsets differ by example."""
    for index, piece in enumerate(pieces):
        if starts[index] <= offset < starts[index + 1]:
            if piece.variable and offset != starts[index]:
                raise TraceAborted("a target that starts or ends within a variable")
            return index, offset - starts[index]
    return len(pieces), 0
