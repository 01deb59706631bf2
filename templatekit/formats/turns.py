"""Which turns a conversation's text holds exactly as serving would meet them, and which texts hold the others.

A turn is *sound* in a text if that begins with the conversation up to the turn rendered alone, up to the end of the
turn's target: then what a server would feed and what it would then generate both stand there to the character, the end
marker too. Templates that drop old reasoning or end the last turn in another way render earlier turns unsoundly: such
a turn is trained in a text of its own, that of the conversation up to it.

Rendering every turn alone takes quadratic time. Turns of one *shape* need not be: a shape is what stands between the
messages before a turn and those behind it (the template's own text and the names of fields), the roles on both sides,
and how the turn's fields were printed. Where the first and the last turn of a shape are sound and have their targets in
the same places, so have those between; where not, and behind the first turn that is not sound, each turn is rendered
alone. What a template could tell turns apart by, beyond their place in the conversation, is part of the shape: texts
that it looks for in fields, whitespace at their edges, whether they stand there whole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from templatekit.errors import RecordError
from templatekit.formats.targets import Rendering, TargetFinder
from templatekit.types import Example, Span, TargetSpan

Targets = tuple[TargetSpan, ...]
_TEXTS = ("content", "context", "reasoning")
_FEW = 2
"""So many turns are rendered alone in any case."""


class _Alone(NamedTuple):
    """A turn as serving meets it."""

    text: str | None
    """The conversation up to it, rendered alone, up to the end of its target, or of its own text where it has none;
    None where that fails."""
    targets: Targets
    """Empty where nothing of the turn is trained."""


class Part(NamedTuple):
    """The first messages of a conversation, and the targets to train in their text."""

    messages: int
    """How many."""
    targets: Targets


class Conversation:
    """One example's renderings, each made once, and the targets in them."""

    def __init__(self, example: Example, finder: TargetFinder, sought: frozenset[str]) -> None:
        """`sought` are the texts that the template looks for in others."""
        self._messages = example.messages
        self._finder = finder
        self._sought = sorted(sought)
        self._renderings: dict[int, Rendering] = {}
        self._alone: dict[int, _Alone] = {}
        self._turns = [index for index, message in enumerate(self._messages) if message.role == "assistant"]

    def rendering(self, count: int) -> Rendering:
        """The first `count` messages, rendered."""
        if count not in self._renderings:
            self._renderings[count] = Rendering.of(self._finder.render(self._messages[:count], False))
        return self._renderings[count]

    def whole(self) -> Part:
        """All messages, with the targets of every turn that is sound in their text."""
        found = self._sound(len(self._messages), self._turns)
        return Part(len(self._messages), _in_order(found))

    def parts(self, *, last_only: bool) -> list[Part]:
        """As few texts as hold every turn with a weight soundly, the shortest first; each turn has targets in one."""
        turns = self._turns[-1:] if last_only else self._turns
        missing = [turn for turn in turns if self._messages[turn].weight]
        parts = []
        count = len(self._messages)
        while missing:
            found = self._sound(count, [turn for turn in missing if turn < count])
            if targets := _in_order(found):
                parts.append(Part(count, targets))
            missing = [turn for turn in missing if turn not in found]
            while missing and not self._turn_alone(missing[-1]).targets:
                missing.pop()
            # At the least its own last turn is sound in a text.
            count = missing[-1] + 1 if missing else 0
        return parts[::-1] or [Part(len(self._messages), ())]

    def _sound(self, count: int, wanted: Sequence[int]) -> dict[int, Targets]:
        """Those of the turns that are sound in the text of the first `count` messages, with their targets."""
        rendering = self.rendering(count)
        if len(wanted) <= _FEW:
            return self._checked(wanted, rendering)
        segments = _Segments(rendering, count)
        turns = [turn for turn in self._turns if turn < count]
        shapes: dict[Hashable, list[int]] = {}
        for turn in turns:
            shapes.setdefault(self._shape(turn, count, segments), []).append(turn)
        known: dict[int, tuple[_Place, ...]] = {}
        for alike in shapes.values():
            ends = self._checked(dict.fromkeys((alike[0], alike[-1])), rendering)
            places = {segments.places(turn, targets) for turn, targets in ends.items()}
            shared = places.pop() if len(places) == 1 else None
            if shared is not None and alike[0] in ends and alike[-1] in ends:
                known |= dict.fromkeys(alike[1:-1], shared)
        found: dict[int, Targets] = {}
        intact = True
        for turn in turns:
            if intact and turn in known:
                found[turn] = segments.targets(turn, known[turn])
            elif intact or turn in wanted:
                found |= self._checked([turn], rendering)
                # What an unsound turn does to the text before others, no shape tells.
                intact = intact and turn in found
        return {turn: found[turn] for turn in wanted if turn in found}

    def _checked(self, turns: Iterable[int], rendering: Rendering) -> dict[int, Targets]:
        """Those of the turns with whose own text this one begins."""
        alone = {turn: self._turn_alone(turn) for turn in turns}
        return {
            turn: one.targets
            for turn, one in alone.items()
            if one.text is not None and rendering.text.startswith(one.text)
        }

    def _turn_alone(self, turn: int) -> _Alone:
        if turn not in self._alone:
            messages = self._messages[: turn + 1]
            text = None
            targets: Targets = ()
            try:
                rendering = self.rendering(turn + 1)
                own = rendering.own(turn)
                text = rendering.text[: own[1]] if own else ""
                if targets := self._finder.targets(messages, rendering):
                    text = rendering.text[: targets[-1].end]
            except RecordError:
                # What opens a conversation answers nothing, so that there may be no prompt for it.
                if messages[turn].weight and any(message.role == "user" for message in messages):
                    raise
            self._alone[turn] = _Alone(text, targets)
        return self._alone[turn]

    def _shape(self, turn: int, count: int, segments: _Segments) -> Hashable:
        message = self._messages[turn]
        around = [self._messages[place].role if 0 <= place < count else None for place in (turn - 1, turn + 1)]
        printed = segments.printed(turn)
        manners = [self._manner(getattr(message, field), printed.get(field, "")) for field in _TEXTS]
        filled = [bool(value) for value in (message.name, message.parts, message.tool_calls)]
        return segments.outline(turn), *around, *filled, *manners

    def _manner(self, value: str, printed: str) -> Hashable:
        """How a field's text was printed, and what a template may see in it."""
        if not value:
            return None
        edges = value[0].isspace(), value[-1].isspace(), printed == value, printed.strip() == value.strip()
        return edges, tuple(text in value for text in self._sought)


class EveryTurn(Conversation):
    """One whose turns are all rendered alone: no shape stands for another."""

    def _sound(self, count: int, wanted: Sequence[int]) -> dict[int, Targets]:
        return self._checked(wanted, self.rendering(count))


class _Segments:
    """A text in pieces, one a message: what stands between the messages before it and those behind it."""

    def __init__(self, rendering: Rendering, count: int) -> None:
        self._text, self._spans = rendering
        self._starts = [*(span.start for span in self._spans), len(self._text)]
        heads, ends = [len(self._text)] * count, [0] * count
        for span in reversed(self._spans):
            if (message := span.origin.message) is not None:
                heads[message] = span.start
                if not span.origin.in_header:
                    ends[message] = max(ends[message], span.end)
        before = [0, *accumulate(ends, max)]
        behind = [len(self._text), *accumulate(reversed(heads), min)][::-1]
        self._bounds = [
            (bisect_left(self._starts, before[message]), bisect_left(self._starts, behind[message + 1]))
            for message in range(count)
        ]

    def outline(self, message: int) -> Hashable:
        """The template's own text, and which field of which message stands where."""
        return tuple(
            (self._text[span.start : span.end], span.origin.generation)
            if span.origin.is_template
            else (span.origin.kind, span.origin.field, _distance(span.origin.message, message), span.origin.generation)
            for span in self._of(message)
        )

    def printed(self, message: int) -> dict[str, str]:
        """The message's own texts as they stand there, by field."""
        texts: dict[str, str] = {}
        for span in self._of(message):
            if span.origin.message == message and span.origin.field is not None:
                texts[span.origin.field] = texts.get(span.origin.field, "") + self._text[span.start : span.end]
        return texts

    def places(self, message: int, targets: Targets) -> tuple[_Place, ...] | None:
        """The targets' offsets as places in the outline; None where one is none."""
        offsets = (offset for target in targets for offset in (target.start, target.marker_start, target.end))
        places = [self._place(message, offset) for offset in offsets]
        return tuple(place for place in places if place is not None) if None not in places else None

    def targets(self, message: int, places: Sequence[_Place]) -> Targets:
        """The targets at places of the outline."""
        first, _ = self._bounds[message]
        offsets = [self._starts[first + place.span] + place.offset for place in places]
        return tuple(
            TargetSpan(message=message, start=start, marker_start=marker_start, end=end)
            for start, marker_start, end in zip(offsets[::3], offsets[1::3], offsets[2::3], strict=True)
        )

    def _of(self, message: int) -> Sequence[Span]:
        first, last = self._bounds[message]
        return self._spans[first:last]

    def _place(self, message: int, offset: int) -> _Place | None:
        first, last = self._bounds[message]
        span = bisect_right(self._starts, offset) - 1
        place = _Place(span - first, offset - self._starts[span])
        inside = first <= span < last and (self._spans[span].origin.is_template or not place.offset)
        return place if inside or (span == last and not place.offset) else None


class _Place(NamedTuple):
    """An offset in a piece, told by the span it stands in: inside one only where the template wrote it."""

    span: int
    offset: int


def _distance(message: int | None, other: int) -> int | None:
    return None if message is None else message - other


def _in_order(found: Mapping[int, Targets]) -> Targets:
    return tuple(target for turn in sorted(found) for target in found[turn])
