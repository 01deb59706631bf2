"""Decides which turns to train in which text, so that each turn is trained exactly as it is served.

A turn stands *as served* in a text if the text starts with the same characters as the conversation up to that turn,
rendered alone, up to the end of the turn's target. The text then holds, character for character, the prompt that a
server would feed and the answer that it would generate, with the end marker. Some templates drop old reasoning or end
the last turn differently. Their earlier turns do not stand as served in the whole text, so each of those is trained in
a text of its own: the conversation up to that turn.

Rendering every turn alone takes quadratic time, so turns are grouped by *shape*. The shape of a turn is everything by
which a template could distinguish it from another turn, except its position in the conversation:

- the template's literals and the names of the fields, from the end of the messages before the turn to the start of
  those after it;
- the roles of the messages before and after it;
- which optional fields it has;
- for each text: whether whitespace is at its edges, whether it is printed unchanged, and which of the texts that the
  template searches for it contains.

Only the first and the last turn of a shape are rendered alone. If both stand as served and have their targets at the
same positions of the shape, so does every turn between them. Otherwise each turn of the shape is rendered alone, and so
is every turn after the first that does not stand as served.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from templatekit.errors import RecordError
from templatekit.formats.rendering import Rendering
from templatekit.formats.targets import TargetFinder
from templatekit.types import Example, Span, TargetSpan

Targets = tuple[TargetSpan, ...]
_TEXT_FIELDS = ("content", "context", "reasoning")
_MAX_WITHOUT_SHAPES = 2
"""Up to this many turns are all rendered alone."""


class _ServedTurn(NamedTuple):
    """A turn at the end of the conversation up to it, rendered alone, as a server renders it."""

    text: str | None
    """The text up to the end of the turn's target, or of its own characters if it has no target.

    None if that conversation cannot be rendered.
    """
    targets: Targets
    """Empty if nothing of the turn is trained."""


class TrainedText(NamedTuple):
    """A text to train on: the first messages of a conversation, and the targets in their rendering."""

    message_count: int
    targets: Targets


class Conversation:
    """The renderings of one example, each made once, and the targets in them."""

    def __init__(self, example: Example, finder: TargetFinder, searched_texts: frozenset[str]) -> None:
        """`searched_texts` are the texts that the template searches for in others."""
        self._messages = example.messages
        self._finder = finder
        self._searched_texts = sorted(searched_texts)
        self._renderings: dict[int, Rendering] = {}
        self._served: dict[int, _ServedTurn] = {}
        self._turns = [index for index, message in enumerate(self._messages) if message.role == "assistant"]

    def rendering(self, message_count: int) -> Rendering:
        """The first `message_count` messages, rendered."""
        if message_count not in self._renderings:
            self._renderings[message_count] = Rendering.of(self._finder.render(self._messages[:message_count], False))
        return self._renderings[message_count]

    def whole_text(self) -> TrainedText:
        """All messages, with the targets of every turn that stands as served in their text."""
        found = self._as_served(len(self._messages), self._turns)
        return TrainedText(len(self._messages), _in_order(found))

    def texts(self, *, last_only: bool) -> list[TrainedText]:
        """The fewest texts that hold every turn with a weight as served, the shortest first.

        Each such turn has targets in exactly one of them. `last_only` asks for the last turn alone.
        """
        turns = self._turns[-1:] if last_only else self._turns
        missing = [turn for turn in turns if self._messages[turn].weight]
        texts = []
        message_count = len(self._messages)
        while missing:
            found = self._as_served(message_count, [turn for turn in missing if turn < message_count])
            if targets := _in_order(found):
                texts.append(TrainedText(message_count, targets))
            missing = [turn for turn in missing if turn not in found]
            while missing and not self._served_turn(missing[-1]).targets:
                missing.pop()
            # The text that ends with the last missing turn holds at least that turn as served.
            message_count = missing[-1] + 1 if missing else 0
        return texts[::-1] or [TrainedText(len(self._messages), ())]

    def _as_served(self, message_count: int, wanted: Sequence[int]) -> dict[int, Targets]:
        """The wanted turns that stand as served in the text of the first `message_count` messages, with targets."""
        rendering = self.rendering(message_count)
        if len(wanted) <= _MAX_WITHOUT_SHAPES:
            return self._compared_alone(wanted, rendering)
        segments = _Segments(rendering, message_count)
        turns = [turn for turn in self._turns if turn < message_count]
        shapes: dict[Hashable, list[int]] = {}
        for turn in turns:
            shapes.setdefault(self._shape(turn, message_count, segments), []).append(turn)
        known: dict[int, tuple[_Position, ...]] = {}
        for same_shape in shapes.values():
            ends = self._compared_alone(dict.fromkeys((same_shape[0], same_shape[-1])), rendering)
            positions = {segments.positions(turn, targets) for turn, targets in ends.items()}
            shared = positions.pop() if len(positions) == 1 else None
            if shared is not None and same_shape[0] in ends and same_shape[-1] in ends:
                known |= dict.fromkeys(same_shape[1:-1], shared)
        found: dict[int, Targets] = {}
        all_as_served = True
        for turn in turns:
            if all_as_served and turn in known:
                found[turn] = segments.targets(turn, known[turn])
            elif all_as_served or turn in wanted:
                found |= self._compared_alone([turn], rendering)
                # A turn that does not stand as served may change the text before later turns; no shape shows that.
                all_as_served = all_as_served and turn in found
        return {turn: found[turn] for turn in wanted if turn in found}

    def _compared_alone(self, turns: Iterable[int], rendering: Rendering) -> dict[int, Targets]:
        """The turns that stand as served in a rendering, found by rendering each alone."""
        served_turns = {turn: self._served_turn(turn) for turn in turns}
        return {
            turn: served.targets
            for turn, served in served_turns.items()
            if served.text is not None and rendering.text.startswith(served.text)
        }

    def _served_turn(self, turn: int) -> _ServedTurn:
        if turn not in self._served:
            messages = self._messages[: turn + 1]
            text = None
            targets: Targets = ()
            try:
                rendering = self.rendering(turn + 1)
                own_range = rendering.own_range(turn)
                text = rendering.text[: own_range[1]] if own_range else ""
                if targets := self._finder.targets(messages, rendering):
                    text = rendering.text[: targets[-1].end]
            except RecordError:
                # A turn that starts the conversation answers nothing, so it may have no prompt.
                if messages[turn].weight and any(message.role == "user" for message in messages):
                    raise
            self._served[turn] = _ServedTurn(text, targets)
        return self._served[turn]

    def _shape(self, turn: int, message_count: int, segments: _Segments) -> Hashable:
        message = self._messages[turn]
        neighbours = (turn - 1, turn + 1)
        roles = [self._messages[index].role if 0 <= index < message_count else None for index in neighbours]
        printed = segments.printed_fields(turn)
        traits = [self._text_traits(getattr(message, field), printed.get(field, "")) for field in _TEXT_FIELDS]
        present = [bool(value) for value in (message.name, message.parts, message.tool_calls)]
        return segments.layout(turn), *roles, *present, *traits

    def _text_traits(self, value: str, printed: str) -> Hashable:
        """What a template may see in a field's text, and whether it printed the text unchanged."""
        if not value:
            return None
        edges = value[0].isspace(), value[-1].isspace(), printed == value, printed.strip() == value.strip()
        return edges, tuple(text in value for text in self._searched_texts)


class SeparateTurns(Conversation):
    """A conversation that renders every turn alone and infers nothing from shapes."""

    def _as_served(self, message_count: int, wanted: Sequence[int]) -> dict[int, Targets]:
        return self._compared_alone(wanted, self.rendering(message_count))


class _Segments:
    """A text in one segment per message, from the end of the messages before it to the start of those after it."""

    def __init__(self, rendering: Rendering, message_count: int) -> None:
        self._text, self._spans = rendering
        self._starts = [*(span.start for span in self._spans), len(self._text)]
        heads, ends = [len(self._text)] * message_count, [0] * message_count
        for span in reversed(self._spans):
            if (message := span.origin.message) is not None:
                heads[message] = span.start
                if not span.origin.in_header:
                    ends[message] = max(ends[message], span.end)
        end_before = [0, *accumulate(ends, max)]
        start_after = [len(self._text), *accumulate(reversed(heads), min)][::-1]
        self._bounds = [
            (bisect_left(self._starts, end_before[message]), bisect_left(self._starts, start_after[message + 1]))
            for message in range(message_count)
        ]

    def layout(self, message: int) -> Hashable:
        """The literals of a message's segment, and between them which field of which message is printed."""
        return tuple(
            (self._text[span.start : span.end], span.origin.generation)
            if span.origin.is_template
            else (span.origin.kind, span.origin.field, _distance(span.origin.message, message), span.origin.generation)
            for span in self._spans_of(message)
        )

    def printed_fields(self, message: int) -> dict[str, str]:
        """The message's own texts as they are printed in its segment, by field."""
        texts: dict[str, str] = {}
        for span in self._spans_of(message):
            if span.origin.message == message and span.origin.field is not None:
                texts[span.origin.field] = texts.get(span.origin.field, "") + self._text[span.start : span.end]
        return texts

    def positions(self, message: int, targets: Targets) -> tuple[_Position, ...] | None:
        """The bounds of the targets as positions in the segment; None if one has no position there."""
        offsets = (offset for target in targets for offset in (target.start, target.marker_start, target.end))
        positions = [self._position(message, offset) for offset in offsets]
        return tuple(position for position in positions if position is not None) if None not in positions else None

    def targets(self, message: int, positions: Sequence[_Position]) -> Targets:
        """The targets whose bounds are at these positions of the segment."""
        first, _ = self._bounds[message]
        offsets = [self._starts[first + position.span] + position.offset for position in positions]
        return tuple(
            TargetSpan(message=message, start=start, marker_start=marker_start, end=end)
            for start, marker_start, end in zip(offsets[::3], offsets[1::3], offsets[2::3], strict=True)
        )

    def _spans_of(self, message: int) -> Sequence[Span]:
        first, last = self._bounds[message]
        return self._spans[first:last]

    def _position(self, message: int, offset: int) -> _Position | None:
        first, last = self._bounds[message]
        span = bisect_right(self._starts, offset) - 1
        position = _Position(span - first, offset - self._starts[span])
        inside = first <= span < last and (self._spans[span].origin.is_template or not position.offset)
        return position if inside or (span == last and not position.offset) else None


class _Position(NamedTuple):
    """An offset in a segment: the index of a span, and an offset in that span, which is 0 except in a literal."""

    span: int
    offset: int


def _distance(message: int | None, other: int) -> int | None:
    return None if message is None else message - other


def _in_order(found: Mapping[int, Targets]) -> Targets:
    return tuple(target for turn in sorted(found) for target in found[turn])
