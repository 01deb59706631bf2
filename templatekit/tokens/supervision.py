"""Which characters are trained, and how much: the one place that turns targets into loss weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from templatekit.types import LossSpan, RenderedText, TargetSpan, TrainOn


def loss_spans(rendered: RenderedText, train_on: TrainOn) -> tuple[LossSpan, ...]:
    """The weights over the whole text, gap-free. Neighbours of one weight are parted where a trained turn begins.

    A turn that is not trained is history: it is encoded as a server encodes it, without a cut. A message's `weight`
    multiplies. `all` trains everything, whatever the weights of the messages say.
    """
    length = len(rendered.text)
    if train_on == "all":
        trained = [LossSpan(start=0, end=length, weight=1.0)]
        boundaries = set(rendered.generation_boundaries)
    else:
        targets = _trained_targets(rendered, train_on)
        trained = [span for target in targets for span in _trained(rendered, target, train_on)]
        boundaries = {target.start for target in targets}
    edges = sorted({0, length, *boundaries, *(edge for s in trained for edge in (s.start, s.end))})
    spans: list[LossSpan] = []
    position = 0
    for start, end in pairwise(edges):
        while position < len(trained) and trained[position].end <= start:
            position += 1
        inside = position < len(trained) and trained[position].start <= start
        weight = trained[position].weight if inside else 0.0
        if spans and spans[-1].weight == weight and start not in boundaries:
            spans[-1] = LossSpan(start=spans[-1].start, end=end, weight=weight)
        else:
            spans.append(LossSpan(start=start, end=end, weight=weight))
    return tuple(spans)


def _trained_targets(rendered: RenderedText, train_on: TrainOn) -> list[TargetSpan]:
    targets = rendered.target_spans
    if train_on == "last":
        targets = tuple(target for target in targets if target.message == targets[-1].message)
    return [target for target in targets if rendered.message_weights[target.message]]


def _trained(rendered: RenderedText, target: TargetSpan, train_on: TrainOn) -> Iterator[LossSpan]:
    """The spans of one target that carry loss, in order and apart."""
    weight = rendered.message_weights[target.message]
    if train_on != "content":
        yield from _whole(target.start, target.end, weight)
        return
    for start, end in _own_text(rendered, target.message, target.start, target.marker_start):
        yield from _whole(start, end, weight)
    yield from _whole(target.marker_start, target.end, weight)


def _whole(start: int, end: int, weight: float) -> Iterator[LossSpan]:
    if end > start:
        yield LossSpan(start=start, end=end, weight=weight)


def _own_text(rendered: RenderedText, message: int, start: int, end: int) -> Sequence[tuple[int, int]]:
    """Where the message's own fields stand between two offsets, and what the template computed there."""
    return [
        (max(span.start, start), min(span.end, end))
        for span in rendered.spans
        if span.end > start
        and span.start < end
        and not span.origin.in_header
        and (span.origin.message == message or span.origin.kind == "computed")
    ]
