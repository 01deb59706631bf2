"""Which characters are trained, and how much: the one place that turns targets into loss weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, overload

from templatekit.config.train_on import TrainedParts, parse_train_on
from templatekit.types import COMPUTED, LossSpan, Origin, RenderedText, TargetSpan, TokenizedExample, TrainOn
from templatekit.views import View


class _Run(NamedTuple):
    """Characters that lie in one target, or in none."""

    start: int
    end: int
    origin: Origin
    target: int | None
    """Index into the target spans."""


class Losses(Sequence[LossSpan]):
    """The loss spans of a text, worked out when they are first asked for."""

    __slots__ = ("_spans", "rendered", "train_on")

    def __init__(self, rendered: RenderedText, train_on: TrainOn) -> None:
        self.rendered, self.train_on = rendered, train_on
        self._spans: tuple[LossSpan, ...] | None = None

    def _found(self) -> tuple[LossSpan, ...]:
        if self._spans is None:
            self._spans = loss_spans(self.rendered, self.train_on)
        return self._spans

    def __len__(self) -> int:
        return len(self._found())

    @overload
    def __getitem__(self, index: int) -> LossSpan: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LossSpan, ...]: ...
    def __getitem__(self, index: int | slice) -> LossSpan | tuple[LossSpan, ...]:
        return self._found()[index]

    def __iter__(self) -> Iterator[LossSpan]:
        return iter(self._found())


def loss_spans(rendered: RenderedText, train_on: TrainOn) -> tuple[LossSpan, ...]:
    """The weights over the whole text, gap-free. Neighbours of one weight are parted where a trained turn begins.

    The most specific part of `train_on` that names a text decides on it: the field, the role, the base. What the
    template writes itself has the base's weight, end markers included. An assistant's text is trained only where a
    server would generate it, so that the header is not. A message's `weight` multiplies; the base `all` alone looks at
    no message. A turn that is not trained is history: it is encoded as a server encodes it, without a cut.
    """
    parts = parse_train_on(train_on)
    turns = _turn_weights(rendered, parts)
    trained = {index for index, weight in enumerate(turns) if weight or (parts.base == "all" and parts.weight)}
    weighted: list[tuple[int, float]] = []
    for run in _runs(rendered, by_origin=bool(parts.named) or parts.base == "content"):
        weight = _named_weight(rendered, run, parts) if parts.named else None
        if weight is None:
            weight = _base_weight(rendered, run, parts, turns)
        elif weight and run.target is not None:
            trained.add(run.target)
        weighted.append((run.start, weight))
    boundaries = {rendered.target_spans[index].start for index in trained}
    begun: list[tuple[int, float]] = []
    for start, weight in weighted:
        if not begun or begun[-1][1] != weight or start in boundaries:
            begun.append((start, weight))
    ends = [*(start for start, _ in begun[1:]), len(rendered.text)]
    return tuple(LossSpan(start=at, end=end, weight=weight) for (at, weight), end in zip(begun, ends, strict=False))


def view_of(shown: RenderedText | TokenizedExample, train_on: TrainOn) -> View:
    """A text for display, with what `train_on` trains of it where it is not tokenized."""
    return shown.view() if isinstance(shown, TokenizedExample) else shown.view(loss_spans(shown, train_on))


def _runs(rendered: RenderedText, *, by_origin: bool) -> Iterator[_Run]:
    """The whole text in order; without `by_origin` no run has one: to work the origins out costs more than the rest."""
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
        yield _Run(start, end, rendered.spans[span].origin if by_origin else COMPUTED, target if inside else None)


def _turn_weights(rendered: RenderedText, parts: TrainedParts) -> list[float]:
    """The base's weight of each target."""
    targets = rendered.target_spans
    weights = (parts.weight * rendered.message_weights[target.message] for target in targets)
    if parts.base != "last":
        return list(weights)
    last = targets[-1].message if targets else None
    return [weight if target.message == last else 0.0 for weight, target in zip(weights, targets, strict=True)]


def _base_weight(rendered: RenderedText, run: _Run, parts: TrainedParts, turns: list[float]) -> float:
    if parts.base == "all":
        return parts.weight
    if run.target is None:
        return 0.0
    if parts.base == "content" and not _is_own(run, rendered.target_spans[run.target]):
        return 0.0
    return turns[run.target]


def _is_own(run: _Run, target: TargetSpan) -> bool:
    """Whether it is the message's own text, or computed by the template, or the end marker."""
    own = run.origin.message == target.message and not run.origin.in_header
    return own or run.origin.kind == "computed" or run.start >= target.marker_start


def _named_weight(rendered: RenderedText, run: _Run, parts: TrainedParts) -> float | None:
    """The weight that a role or a field gives; None where none names the text."""
    message, field = run.origin.message, run.origin.field
    if field is None:
        return None
    if message is None:
        return parts.weight_of("", field) if not rendered.history else None
    role = rendered.roles[message]
    # A text of the prompt is trained in the record's first sample that holds it.
    if run.target is None and (role == "assistant" or message < rendered.history):
        return None
    weight = parts.weight_of(role, field)
    # A prompt alone has no weights.
    return weight and weight * (rendered.message_weights[message] if rendered.message_weights else 1.0)
