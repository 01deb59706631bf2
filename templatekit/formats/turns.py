"""Decides which turns to train in which text, so that each turn is trained exactly as it is served.

A turn stands *as served* in a text if the text starts with the same characters as the conversation up to that turn,
rendered alone, up to the end of the turn's target. The text then holds, character for character, the prompt that a
server would feed and the answer that it would generate, with the end marker. Some templates drop old reasoning or end
the last turn differently. Their earlier turns do not stand as served in the whole text, so each of those is trained in
a text of its own: the conversation up to that turn.

So every turn is rendered alone, as plain text: with its answer, and as the prompt for it (`prefixes` gives the texts of
most templates at once). Where a plain text is the start of a longer text whose origins are known, its characters have
the same origins, so it need not be rendered again to learn them. Neither the prompt of a turn nor its text is concluded
from other turns: a template may look at a turn's content, its number, or the turns around it. What the template writes
after a turn is read once for all turns that it writes the same after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from templatekit.errors import NoEndMarkerError, RecordError
from templatekit.formats.rendering import Rendering
from templatekit.formats.targets import TargetFinder
from templatekit.types import Example, TargetSpan

Targets = tuple[TargetSpan, ...]


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

    def __init__(self, example: Example, finder: TargetFinder) -> None:
        self._messages = example.messages
        self._finder = finder
        self._renderings: dict[int, Rendering] = {}
        self._served: dict[int, _ServedTurn] = {}
        self._turns = [index for index, message in enumerate(self._messages) if message.role == "assistant"]

    def rendering(self, message_count: int) -> Rendering:
        """The first `message_count` messages, rendered; an answer at their end as it is served."""
        if message_count not in self._renderings:
            self._renderings[message_count] = self._finder.renderer.served(self._messages[:message_count])
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
            while missing and not self._served[missing[-1]].targets:
                missing.pop()
            # The text that ends with the last missing turn holds at least that turn as served.
            message_count = missing[-1] + 1 if missing else 0
        return texts[::-1] or [TrainedText(len(self._messages), ())]

    def _as_served(self, message_count: int, wanted: Sequence[int]) -> dict[int, Targets]:
        """The wanted turns that stand as served in the text of the first `message_count` messages, with targets."""
        if message_count - 1 in wanted:  # which may give the text another end
            self._served_turn(message_count - 1, self.rendering(message_count))
        rendering = self.rendering(message_count)
        served_turns = {turn: self._served_turn(turn, rendering) for turn in wanted}
        return {
            turn: served.targets
            for turn, served in served_turns.items()
            if served.text is not None and rendering.text.startswith(served.text)
        }

    def _served_turn(self, turn: int, longer: Rendering) -> _ServedTurn:
        """The turn as it is served; `longer` is the rendering of as many messages or more."""
        if turn not in self._served:
            messages = self._messages[: turn + 1]
            rendering = None
            targets: Targets = ()
            try:
                rendering = self._rendering_alone(turn, longer)
                try:
                    targets = self._finder.targets(messages, rendering)
                except NoEndMarkerError:
                    rendering = self._renderings[turn + 1] = self._finder.ended_by_stop_token(messages, rendering)
                    targets = self._finder.targets(messages, rendering)
            except RecordError:
                # A turn that starts the conversation answers nothing, so it may have no prompt.
                if messages[turn].weight and any(message.role == "user" for message in messages):
                    raise
            text = None
            if rendering is not None:
                end = targets[-1].end if targets else (rendering.own_range(turn) or (0, 0))[1]
                text = rendering.text[:end]
            self._served[turn] = _ServedTurn(text, targets)
        return self._served[turn]

    def _rendering_alone(self, turn: int, longer: Rendering) -> Rendering:
        """The rendering of the conversation up to a turn; the origins are those of the longer text if that starts so.

        Some templates end every text alike, with a token or a prompt; that end has the same origins in each.
        """
        if turn + 1 in self._renderings:
            return self._renderings[turn + 1]
        text = self._finder.renderer.text(self._messages[: turn + 1], False)
        if longer.text.startswith(text):
            found = longer.cut(len(text))
        else:
            ending = longer.ending()
            start = text.removesuffix(ending.text)
            alike = text.endswith(ending.text) and longer.text.startswith(start)
            if not alike or self._finder.has_generation_blocks:  # the same end may be in a block behind an answer alone
                return self.rendering(turn + 1)
            found = longer.cut(len(start)).followed_by(ending)
        served = self._finder.renderer.as_served(self._messages[: turn + 1], found)
        if served is not found:
            self._renderings[turn + 1] = served
        return served


class SeparateTurns(Conversation):
    """A conversation that also learns the origins of every turn by rendering it alone, as a recording has to."""

    def _rendering_alone(self, turn: int, longer: Rendering) -> Rendering:
        return self.rendering(turn + 1)


def _in_order(found: Mapping[int, Targets]) -> Targets:
    return tuple(target for turn in sorted(found) for target in found[turn])
