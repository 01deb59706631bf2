"""Decides which characters are trained, and how much: the only place that turns targets into weights to train with.

`RenderedText.view` repeats the plain case, `response`, for display.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, overload

from templatekit.config.train_on import TrainOnWeights, parse_train_on
from templatekit.types import COMPUTED, LossSpan, Origin, RenderedText, TargetSpan, TrainOn


class _TargetedSpan(NamedTuple):
    """Characters of one origin that lie in one target, or in none."""

    start: int
    end: int
    origin: Origin
    target: int | None
    """Index into the target spans; None outside of them."""


class LazyLossSpans(Sequence[LossSpan]):
    """The loss spans of a text, computed on first access."""

    __slots__ = ("_spans", "rendered", "train_on")

    def __init__(self, rendered: RenderedText, train_on: TrainOn) -> None:
        self.rendered, self.train_on = rendered, train_on
        self._spans: tuple[LossSpan, ...] | None = None

    def _computed(self) -> tuple[LossSpan, ...]:
        if self._spans is None:
            self._spans = loss_spans(self.rendered, self.train_on)
        return self._spans

    def __len__(self) -> int:
        return len(self._computed())

    @overload
    def __getitem__(self, index: int) -> LossSpan: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LossSpan, ...]: ...
    def __getitem__(self, index: int | slice) -> LossSpan | tuple[LossSpan, ...]:
        return self._computed()[index]

    def __iter__(self) -> Iterator[LossSpan]:
        return iter(self._computed())


def loss_spans(rendered: RenderedText, train_on: TrainOn) -> tuple[LossSpan, ...]:
    """The loss weights of the whole text, without gaps. A span starts where the weight changes or a trained turn
    starts.

    Several parts of `train_on` may name a text; the most specific part decides: a field, then a role, then the base.
    Text that the template wrote, end markers included, has the base's weight. An assistant's text is trained only where
    a server would generate it, so the turn's header is not. A message's `weight` is a factor, except with the base
    `all`. A turn that is not trained is history: it is encoded as a server encodes it, without a cut at its start.
    """
    options = parse_train_on(train_on)
    targets = _target_weights(rendered, options)
    trained = {index for index, weight in enumerate(targets) if weight or (options.base == "all" and options.weight)}
    weighted: list[tuple[int, float]] = []
    for span in _targeted_spans(rendered, by_origin=bool(options.named) or options.base == "content"):
        weight = _named_weight(rendered, span, options) if options.named else None
        if weight is None:
            weight = _base_weight(rendered, span, options, targets)
        elif weight and span.target is not None:
            trained.add(span.target)
        weighted.append((span.start, weight))
    boundaries = {rendered.target_spans[index].start for index in trained}
    merged: list[tuple[int, float]] = []
    for start, weight in weighted:
        if not merged or merged[-1][1] != weight or start in boundaries:
            merged.append((start, weight))
    ends = [*(start for start, _ in merged[1:]), len(rendered.text)]
    return tuple(
        LossSpan(start=start, end=end, weight=weight) for (start, weight), end in zip(merged, ends, strict=False)
    )


def _targeted_spans(rendered: RenderedText, *, by_origin: bool) -> Iterator[_TargetedSpan]:
    """The whole text in order. Without `by_origin` no origins are read, which would take longer than the rest."""
    targets = rendered.target_spans
    edges = {0, len(rendered.text), *(edge for t in targets for edge in (t.start, t.marker_start, t.end))}
    if by_origin:
        edges.update(span.end for span in rendered.spans)
    span, target = 0, 0
    for start, end in pairwise(sorted(edges)):
        while by_origin and rendered.spans[span].end <= start:
            span += 1
        while target < len(targets) and targets[target].end <= start:
            target += 1
        inside = target < len(targets) and targets[target].start <= start
        yield _TargetedSpan(
            start, end, rendered.spans[span].origin if by_origin else COMPUTED, target if inside else None
        )


def _target_weights(rendered: RenderedText, options: TrainOnWeights) -> list[float]:
    """The weight that the base of `train_on` gives to each target."""
    targets = rendered.target_spans
    weights = (options.weight * rendered.message_weights[target.message] for target in targets)
    if options.base != "last":
        return list(weights)
    last = targets[-1].message if targets else None
    return [weight if target.message == last else 0.0 for weight, target in zip(weights, targets, strict=True)]


def _base_weight(
    rendered: RenderedText, span: _TargetedSpan, options: TrainOnWeights, targets: Sequence[float]
) -> float:
    if options.base == "all":
        return options.weight
    if span.target is None:
        return 0.0
    if options.base == "content" and not _is_content(span, rendered.target_spans[span.target]):
        return 0.0
    return targets[span.target]


def _is_content(span: _TargetedSpan, target: TargetSpan) -> bool:
    """Whether a span is the message's own text, or computed by the template, or in the end marker."""
    own = span.origin.message == target.message and not span.origin.in_header
    return own or span.origin.kind == "computed" or span.start >= target.marker_start


def _named_weight(rendered: RenderedText, span: _TargetedSpan, options: TrainOnWeights) -> float | None:
    """The weight that a role or a field of `train_on` gives; None where none of them names the text."""
    message, field = span.origin.message, span.origin.field
    if field is None:
        return None
    if message is None:
        return options.weight_of("", field) if not rendered.history else None
    role = rendered.roles[message]
    # Text of a prompt is trained in the first of the record's samples that contains it.
    if span.target is None and (role == "assistant" or message < rendered.history):
        return None
    weight = options.weight_of(role, field)
    # A generation prompt has no message weights.
    return weight and weight * (rendered.message_weights[message] if rendered.message_weights else 1.0)
