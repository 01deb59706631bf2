"""Where each assistant turn begins and ends in the rendered text: the generation boundary and the end marker.

**The boundary** of a turn is the end of the prompt that a server would feed to have it generated: the same template
over the messages before it, with `add_generation_prompt`. The text must begin with that prompt, else training would
not see what serving feeds. To keep the cost linear in turns, the prompt is rendered for the last turn alone; earlier
turns repeat its header in the template's own text right before their first character, and only where that is not
plain to see, their prompt is rendered as well.

**The end marker** is the text that the template writes behind the turn's last character, up to and including the first
of: a stop text of the template's metadata, a special token of the tokenizer. A template that writes none of these
leaves open how the model should stop, and is refused until its metadata says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from templatekit.errors import RecordError, TemplateError, shorten
from templatekit.formats.metadata import TemplateMetadata
from templatekit.types import Example, Span, SpecialTokens, TargetSpan


class RenderPrefix(Protocol):
    """Renders the first `count` messages alone, with or without the generation prompt."""

    def __call__(self, count: int, *, prompt: bool) -> str:
        """The text."""
        ...


@dataclass(frozen=True, slots=True)
class EndMarkers:
    """The texts that may end an assistant's turn."""

    pattern: re.Pattern[str] | None
    required: bool

    @classmethod
    def of(cls, metadata: TemplateMetadata, tokens: SpecialTokens) -> EndMarkers:
        """The stop texts of the template and the special tokens of the tokenizer, the longest first."""
        texts = {*metadata.stop, *tokens.special, tokens.eos} - {""}
        ordered = sorted(texts, key=lambda text: (-len(text), text))
        pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        return cls(pattern, required=metadata.end_marker == "required" and tokens.known)


class _Extent(NamedTuple):
    """Where one message's own characters (`start`, `end`) and its header's (`head`) lie; None where it has none."""

    head: int | None
    start: int | None
    end: int | None


def find_targets(
    text: str,
    spans: Sequence[Span],
    example: Example,
    prefix: RenderPrefix,
    markers: EndMarkers,
    *,
    name: str,
) -> tuple[TargetSpan, ...]:
    """One target an assistant message, in order. Raises `RecordError` where a prompt is no prefix of the text."""
    turns = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    if not turns:
        return ()
    extents = [_extent(spans, index) for index in range(len(example.messages))]
    blocks = [(span.start, span.end) for span in _joined(spans) if span.origin.generation]
    boundaries = _boundaries(text, turns, extents, prefix, name)
    targets = []
    for position, turn in enumerate(turns):
        start = boundaries[position]
        limit = _next_start(extents, turn, len(text))
        content_end = max(start, extents[turn].end or start)
        if blocks:
            block = next((b for b in blocks if start <= b[0] and b[1] <= limit), None)
            if block is None:
                continue  # the template says that this turn is not the assistant's to learn
            targets.append(
                TargetSpan(message=turn, start=block[0], marker_start=min(content_end, block[1]), end=block[1])
            )
            continue
        end = _marker_end(text, content_end, limit, markers, name)
        targets.append(TargetSpan(message=turn, start=start, marker_start=content_end, end=end))
    return tuple(targets)


def _extent(spans: Sequence[Span], message: int) -> _Extent:
    head = start = end = None
    for span in spans:
        if span.origin.message != message:
            continue
        head = span.start if head is None else head
        if not span.origin.in_header:
            start = span.start if start is None else start
            end = span.end
    return _Extent(head, start, end)


def _boundaries(
    text: str, turns: Sequence[int], extents: Sequence[_Extent], prefix: RenderPrefix, name: str
) -> list[int]:
    last = _rendered_boundary(text, turns[-1], prefix, name)
    if len(turns) == 1:
        return [last]
    closed = prefix(turns[-1], prompt=False)
    header = text[len(closed) : last] if text.startswith(closed) else ""
    boundaries = []
    for turn in turns[:-1]:
        found = _header_end(text, header, turn, extents)
        boundaries.append(found if found is not None else _rendered_boundary(text, turn, prefix, name))
    return [*boundaries, last]


def _header_end(text: str, header: str, turn: int, extents: Sequence[_Extent]) -> int | None:
    """The end of the one header between the text of earlier messages and the turn's own; None where in doubt."""
    start = extents[turn].start
    before = max((extent.end or 0 for extent in extents[:turn]), default=0)
    if not header or start is None or text.count(header, before, start) != 1:
        return None
    return text.index(header, before, start) + len(header)


def _rendered_boundary(text: str, turn: int, prefix: RenderPrefix, name: str) -> int:
    prompt = prefix(turn, prompt=True)
    if not text.startswith(prompt):
        same = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(text))
        raise RecordError(
            f"template {name!r} renders the conversation differently from the prompt a server would feed before it; "
            f"from character {same} the prompt is {shorten(prompt[same : same + 40])} and the text is "
            f"{shorten(text[same : same + 40])}; train the conversation's last turn alone, as a record of its own",
            field=f"messages[{turn}]",
            reason="prompt_is_no_prefix",
        )
    return len(prompt)


def _next_start(extents: Sequence[_Extent], turn: int, length: int) -> int:
    """Where the next message's first character stands, its header's included."""
    return min((extent.head for extent in extents[turn + 1 :] if extent.head is not None), default=length)


def _marker_end(text: str, content_end: int, limit: int, markers: EndMarkers, name: str) -> int:
    match = markers.pattern.search(text, content_end, limit) if markers.pattern else None
    if match is not None:
        return match.end()
    if not markers.required:
        return content_end
    behind = text[content_end:limit]
    raise TemplateError(
        f"template {name!r}: nothing behind the answer tells the model to stop; found {shorten(behind)}, expected a "
        "special token or a stop text; write {{ eos_token }} behind the answer, or name the text in the leading "
        'comment (stop: ["..."]), or say there that there is none (end_marker: none)'
    )


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Neighbouring spans that stand in `{% generation %}` blocks, as one; the rest as they are."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].origin.generation and span.origin.generation:
            joined[-1] = Span(start=joined[-1].start, end=span.end, origin=joined[-1].origin)
        else:
            joined.append(span)
    return joined
