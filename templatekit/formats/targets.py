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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from templatekit.errors import NoEndMarkerError, RecordError, shorten
from templatekit.formats.end_markers import EndMarkers
from templatekit.formats.provenance import TrackedText
from templatekit.formats.rendering import Rendering
from templatekit.types import Message, Span, TargetSpan

Messages: TypeAlias = tuple[Message, ...]

_NEXT_TURN = Message(role="user", content="x")
"""Rendered after an answer, it shows which text the template writes there in every case."""


RenderFunction: TypeAlias = Callable[[Messages, bool], TrackedText]
"""Renders messages; if the second argument is true, as the prompt for the answer to them."""
TextFunction: TypeAlias = Callable[[Messages, bool], str]
"""The same for the first messages of the conversation, as plain text, which takes less time."""


class TargetFinder(NamedTuple):
    """Finds the targets in the renderings of one template."""

    render: RenderFunction
    text: TextFunction
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
        own_range = rendering.own_range(turn) or self._empty_answer_range(messages, rendering)
        content_end = max(start, own_range[1]) if own_range else start
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

    def _ends_a_plain_answer(self, messages: Messages) -> bool:
        """Whether the template ends another answer in place of the last one: a letter, without calls or reasoning."""
        plain = replace(messages[-1], content="x", parts=(), context="", reasoning="", tool_calls=())
        if plain == messages[-1]:
            return False
        messages = (*messages[:-1], plain)
        try:
            self.targets(messages, Rendering.of(self.render(messages, False)))
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
        prompt = self.text(before, True)
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

    def _empty_answer_range(self, messages: Messages, rendering: Rendering) -> tuple[int, int] | None:
        """The range at which an empty answer is printed, found by rendering one letter there; None if unclear.

        A literal before that position does not end the answer. The range is empty, or holds what the template makes of
        an empty text, such as the two quotes of `tojson`.
        """
        with_letter = Rendering.of(self.render(_with_one_letter(messages), False))
        own_range = with_letter.own_range(len(messages) - 1)
        if own_range is None or not rendering.text.startswith(with_letter.text[: own_range[0]]):
            return None
        start = end = own_range[0]
        for span in rendering.spans:
            if span.start == end and span.origin.kind == "computed":
                end = span.end
        return start, end

    def _closing_before_user(self, closing: str, messages: Messages) -> str | None:
        """What stands in place of a closing if a user's turn follows, found at the first turn with this closing."""
        if closing not in self.closings_before_user:
            self.closings_before_user[closing] = self._find_closing_before_user(messages)
        return self.closings_before_user[closing]

    def _find_closing_before_user(self, messages: Messages) -> str | None:
        """The literal after the last turn's own characters if a user's turn follows; None if none can follow."""
        for before in (messages, _with_one_letter(messages)):
            try:
                rendering = Rendering.of(self.render((*before, _NEXT_TURN), False))
            except RecordError:
                return None
            if (own_range := rendering.own_range(len(messages) - 1)) is not None:
                return rendering.literal_from(own_range[1])
        return None


def _with_one_letter(messages: Messages) -> Messages:
    """The same messages, with one letter as the content of the last."""
    return (*messages[:-1], replace(messages[-1], content="x", parts=()))


def _generation_blocks(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """The ranges of `{% generation %}` blocks; adjacent spans in them count as one block."""
    blocks: list[tuple[int, int]] = []
    for span in spans:
        if span.origin.generation:
            start = blocks.pop()[0] if blocks and blocks[-1][1] == span.start else span.start
            blocks.append((start, span.end))
    return blocks
