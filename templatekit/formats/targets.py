"""Finds the target of a conversation's last turn, an assistant's: the characters that a server would generate.

**The generation boundary** is the start of the target. It is the end of the prompt that a server would feed to generate
the turn: the messages before it, rendered by the same template with `add_generation_prompt`. The text must start with
that prompt, or training would not see the same prompt as serving.

**The end marker** is the end of the target. `end_markers` infers it from the literal that the template writes after the
last character of the turn.

**Generation blocks** (`{% generation %}`) decide instead in a template that has any: everything in them after the
boundary is trained, and a turn without a block is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from templatekit.errors import NoEndMarkerError, RecordError, shorten
from templatekit.formats.end_markers import EndMarkers
from templatekit.formats.rendering import Rendering
from templatekit.formats.served_answer import ExampleRenderer, Messages, with_one_letter
from templatekit.types import Message, Span, TargetSpan

_NEXT_TURN = Message(role="user", content="x")
"""Rendered after an answer, it shows which text the template writes there in every case."""


class TargetFinder(NamedTuple):
    """Finds the targets in the renderings of one example by one template."""

    renderer: ExampleRenderer
    end_markers: EndMarkers
    has_generation_blocks: bool
    name: str
    """The template's name, for errors."""
    closings_before_user: dict[str, str | None]
    """By closing, what the template writes in its place before a user's turn; filled while targets are found."""

    def targets(self, messages: Messages, rendering: Rendering) -> tuple[TargetSpan, ...]:
        """The targets of the last of these messages, an assistant's, in their rendering: one, or one per block.

        Raises `RecordError` if the prompt is not a prefix of the text, or if the end marker of this answer alone is
        unknown; `TemplateError` if that of every answer is.
        """
        turn = len(messages) - 1
        start = self._generation_boundary(messages[:turn], rendering.text)
        if self.has_generation_blocks:
            return tuple(self._block_targets(turn, start, rendering))
        content_end = self._content_end(messages, rendering, start)
        closing = rendering.literal_from(content_end)
        try:
            length = self.end_markers.marker_length(
                closing,
                opening=rendering.literal_from(0),
                closing_before_user=lambda: self._closing_before_user(closing, messages),
                name=self.name,
            )
        except NoEndMarkerError:
            if self._ends_a_plain_answer(messages):
                raise self._open_end(turn, closing) from None
            raise
        return (TargetSpan(message=turn, start=start, marker_start=content_end, end=content_end + length),)

    def ended_by_stop_token(self, messages: Messages, rendering: Rendering) -> Rendering:
        """The rendering, cut after the last answer and ended by a stop token; the rendering itself if none is known.

        For an answer whose end the template leaves open.
        """
        tool = Message(role="tool", content=_NEXT_TURN.content)
        following = tool if messages[-1].tool_calls else _NEXT_TURN
        content_end = self._content_end(messages, rendering)
        closing = rendering.literal_from(content_end)
        marker = self.end_markers.added_marker(closing, self._closing_before(following, messages, header=True) or "")
        return rendering.cut(content_end).followed_by(Rendering.literal(marker)) if marker else rendering

    def _content_end(self, messages: Messages, rendering: Rendering, start: int = 0) -> int:
        """The offset after the last message's own characters, which start at the generation boundary or later."""
        own_range = self.renderer.own_range(messages, rendering)
        return max(start, own_range[1]) if own_range else start

    def _ends_a_plain_answer(self, messages: Messages) -> bool:
        """Whether the template ends another answer in place of the last one: a letter, without calls or reasoning."""
        plain = replace(messages[-1], content="x", parts=(), context="", reasoning="", tool_calls=())
        if plain == messages[-1]:
            return False
        messages = (*messages[:-1], plain)
        try:
            self.targets(messages, self.renderer.served(messages))
        except (RecordError, NoEndMarkerError):
            return False
        return True

    def _open_end(self, turn: int, closing: str) -> RecordError:
        return RecordError(
            f"template {self.name!r} leaves open what ends this answer, though it ends others; found "
            f"{shorten(closing)} after it; mend the answer, or name the text that ends it (--end-marker TEXT)",
            field=f"messages[{turn}]",
            reason="no_end_marker",
        )

    def _generation_boundary(self, before: Messages, text: str) -> int:
        prompt = self.renderer.text(before, True)
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

    def _block_targets(self, turn: int, start: int, rendering: Rendering) -> Iterator[TargetSpan]:
        """The parts of generation blocks after the boundary; a server feeds the characters before it."""
        own_range = rendering.own_range(turn)
        for block_start, end in _generation_blocks(rendering.spans):
            if end > start:
                block_start = max(block_start, start)
                marker_start = min(max(block_start, own_range[1] if own_range else block_start), end)
                yield TargetSpan(message=turn, start=block_start, marker_start=marker_start, end=end)

    def _closing_before_user(self, closing: str, messages: Messages) -> str | None:
        """What stands in place of a closing if a user's turn follows, found at the first turn with this closing."""
        if closing not in self.closings_before_user:
            self.closings_before_user[closing] = self._closing_before(_NEXT_TURN, messages)
        return self.closings_before_user[closing]

    def _closing_before(self, message: Message, messages: Messages, *, header: bool = False) -> str | None:
        """The literal after the last turn's own characters if this message follows; None if it cannot follow.

        With `header`, a role that is printed in it belongs to it.
        """
        for before in (messages, with_one_letter(messages)):
            try:
                rendering = Rendering.of(self.renderer.render((*before, message), False))
            except RecordError:
                return None
            if (own_range := rendering.own_range(len(messages) - 1)) is not None:
                return rendering.literal_from(own_range[1], header=header)
        return None


def _generation_blocks(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """The ranges of `{% generation %}` blocks; adjacent spans in them count as one block."""
    blocks: list[tuple[int, int]] = []
    for span in spans:
        if span.origin.generation:
            start = blocks.pop()[0] if blocks and blocks[-1][1] == span.start else span.start
            blocks.append((start, span.end))
    return blocks
