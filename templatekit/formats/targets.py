"""Where an assistant turn begins and ends where it is the last of the conversation: its boundary and its end marker.

**The boundary** is the end of the prompt that a server would feed to have the turn generated: the same template over
the messages before it, with `add_generation_prompt`. The text must begin with that prompt, else training would not see
what serving feeds.

**The end marker** is told from what the template writes behind the turn's last character: see `endings`.

**Generation blocks** of the template's own (`{% generation %}`) decide instead where it has any: what stands in them
behind the boundary is trained. A turn without a block is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from templatekit.errors import RecordError, shorten
from templatekit.formats.end_markers import EndMarkers
from templatekit.formats.provenance import Traced, plain_text, spans_of
from templatekit.types import Message, Span, TargetSpan

Messages: TypeAlias = tuple[Message, ...]

_FOLLOWING = Message(role="user", content="x")
"""The turn with which one sees what a template writes whatever follows."""


class Rendering(NamedTuple):
    """A text and where its characters came from."""

    text: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, text: Traced) -> Rendering:
        """The rendering in plain text and spans."""
        return cls(plain_text(text), spans_of(text))

    def template_text(self, start: int) -> str:
        """What the template wrote from here on, up to the first character from elsewhere."""
        end = start
        for span in self.spans:
            if span.end > end:
                if not span.origin.is_template:
                    break
                end = span.end
        return self.text[start:end]

    def own(self, message: int) -> tuple[int, int] | None:
        """From the first to the last of a message's own characters, its header aside; None where it has none.

        What is computed right behind them, such as a number in a tool call, is its own too.
        """
        own: tuple[int, int] | None = None
        at_hand = False
        for span in self.spans:
            if span.origin.message == message and not span.origin.in_header:
                own = (own[0] if own else span.start, span.end)
                at_hand = True
            elif own and at_hand and span.origin.kind == "computed":
                own = (own[0], span.end)
            elif not span.origin.is_template:
                at_hand = False
        return own


Renderer: TypeAlias = Callable[[Messages, bool], Traced]
"""Renders messages, or the prompt for what comes behind them."""


class TargetFinder(NamedTuple):
    """Finds the targets of one template's renderings."""

    render: Renderer
    markers: EndMarkers
    marked: bool
    """The template has generation blocks."""
    name: str

    def targets(self, messages: Messages, alone: Rendering) -> tuple[TargetSpan, ...]:
        """The targets of the last of these messages, an assistant's, in their rendering: one, or one a block.

        Raises `RecordError` where the prompt is no prefix of the text, `TemplateError` where its end is left open.
        """
        turn = len(messages) - 1
        start = self._boundary(messages[:turn], alone.text)
        if self.marked:
            return tuple(self._blocks(turn, start, alone))
        own = alone.own(turn) or self._empty(messages, alone)
        content_end = max(start, own[1]) if own else start
        length = self.markers.length(
            alone.template_text(content_end),
            opening=alone.template_text(0),
            followed=lambda: self._followed(messages),
            name=self.name,
        )
        return (TargetSpan(message=turn, start=start, marker_start=content_end, end=content_end + length),)

    def _boundary(self, before: Messages, text: str) -> int:
        prompt = plain_text(self.render(before, True))
        if text.startswith(prompt):
            return len(prompt)
        same = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(text))
        raise RecordError(
            f"template {self.name!r} renders the conversation differently from the prompt a server would feed before "
            f"it; from character {same} the prompt is {shorten(prompt[same : same + 40])} and the text is "
            f"{shorten(text[same : same + 40])}",
            field=f"messages[{len(before)}]",
            reason="prompt_is_no_prefix",
        )

    def _blocks(self, turn: int, start: int, alone: Rendering) -> Iterator[TargetSpan]:
        """What stands in generation blocks behind the boundary; before it a server feeds it."""
        own = alone.own(turn)
        for first, end in _blocks(alone.spans):
            if end > start:
                first = max(first, start)
                marker_start = min(max(first, own[1] if own else first), end)
                yield TargetSpan(message=turn, start=first, marker_start=marker_start, end=end)

    def _empty(self, messages: Messages, alone: Rendering) -> tuple[int, int] | None:
        """Where an empty answer stands: what the template writes before it is not its end. None where in doubt."""
        filled = Rendering.of(self.render(_filled(messages), False))
        own = filled.own(len(messages) - 1)
        if own is None or not alone.text.startswith(filled.text[: own[0]]):
            return None
        return own[0], own[0]

    def _followed(self, messages: Messages) -> str | None:
        """What the template writes behind the last turn's own characters when a user's turn follows."""
        for before in (messages, _filled(messages)):
            try:
                rendering = Rendering.of(self.render((*before, _FOLLOWING), False))
            except RecordError:
                return None
            if (own := rendering.own(len(messages) - 1)) is not None:
                return rendering.template_text(own[1])
        return None


def _filled(messages: Messages) -> Messages:
    return (*messages[:-1], replace(messages[-1], content="x", parts=()))


def _blocks(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """The extents of `{% generation %}` blocks; neighbouring spans in them count as one block."""
    blocks: list[tuple[int, int]] = []
    for span in spans:
        if span.origin.generation:
            start = blocks.pop()[0] if blocks and blocks[-1][1] == span.start else span.start
            blocks.append((start, span.end))
    return blocks
