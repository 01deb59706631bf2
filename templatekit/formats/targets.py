"""Where each assistant turn begins and ends in the rendered text: the generation boundary and the end marker.

**The boundary** of a turn is the end of the prompt that a server would feed to have it generated: the same template
over the messages before it, with `add_generation_prompt`. The text must begin with that prompt, else training would
not see what serving feeds. To keep the cost linear in turns, the prompt is rendered for the last turn alone; earlier
turns repeat its header in the template's own text right before their first character, and only where that is not
plain to see, their prompt is rendered as well.

**The end marker** is the text that the template writes behind the turn's last character, up to and including the first
of: a stop text of the template's metadata, a special token of the tokenizer. A template that writes none of these
leaves open how the model should stop, and is refused until its metadata says.

**Generation blocks** of the template's own (`{% generation %}`) decide instead where it has any: what stands in them
behind the boundary is trained. A turn without a block is not.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from templatekit.errors import RecordError, TemplateError, shorten
from templatekit.formats.metadata import TemplateMetadata
from templatekit.types import Example, Span, SpecialTokens, TargetSpan


class Renderings(Protocol):
    """Other renderings of the same conversation, made where they are needed."""

    def prefix(self, count: int, *, prompt: bool) -> str:
        """The text of the first `count` messages alone, with or without the generation prompt."""
        ...

    def filled(self, turn: int) -> tuple[str, Sequence[Span]]:
        """The text and its spans with a letter as the content of this turn."""
        ...


@dataclass(frozen=True, slots=True)
class EndMarkers:
    """The texts that may end an assistant's turn."""

    pattern: re.Pattern[str] | None
    required: bool

    @classmethod
    def of(cls, metadata: TemplateMetadata, tokens: SpecialTokens) -> EndMarkers:
        """The stop texts of the template and the special tokens of the tokenizer, the longest first."""
        texts = tokens.special.union(metadata.stop, [tokens.eos]) - {""}
        return cls(_any_of(texts), required=metadata.end_marker == "required" and tokens.known)


@lru_cache(maxsize=64)
def _any_of(texts: frozenset[str]) -> re.Pattern[str] | None:
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


class _Extent(NamedTuple):
    """Where one message's own characters (`start`, `end`) and its header's (`head`) lie; None where it has none."""

    head: int | None
    start: int | None
    end: int | None


def find_targets(
    text: str,
    spans: Sequence[Span],
    example: Example,
    renderings: Renderings,
    markers: EndMarkers,
    *,
    name: str,
) -> tuple[TargetSpan, ...]:
    """The targets in order: one an assistant message, or one a generation block.

    Raises `RecordError` where a prompt is no prefix of the text.
    """
    turns = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    if not turns:
        return ()
    extents = _extents(spans, len(example.messages))
    boundaries = _boundaries(text, turns, extents, renderings, name)
    blocks = [(span.start, span.end) for span in _joined(spans) if span.origin.generation]
    if blocks:
        return tuple(_marked_targets(blocks, turns, boundaries, extents))
    limits = _next_heads(extents, len(text))
    targets = []
    for turn, start in zip(turns, boundaries, strict=True):
        content_end = max(start, extents[turn].end or _empty_end(text, turn, renderings) or start)
        end = _marker_end(text, content_end, limits[turn], markers, name)
        targets.append(TargetSpan(message=turn, start=start, marker_start=content_end, end=end))
    return tuple(targets)


def _empty_end(text: str, turn: int, renderings: Renderings) -> int | None:
    """Where an empty answer stands: what the template writes before it is not its end marker. None where in doubt."""
    other, spans = renderings.filled(turn)
    start = next((span.start for span in spans if span.origin.message == turn and not span.origin.in_header), None)
    return start if start is not None and text.startswith(other[:start]) else None


def _marked_targets(
    blocks: Sequence[tuple[int, int]], turns: Sequence[int], boundaries: Sequence[int], extents: Sequence[_Extent]
) -> Iterator[TargetSpan]:
    """What stands in generation blocks. A block belongs to the last turn whose boundary lies before its end."""
    for first, end in blocks:
        position = bisect_left(boundaries, end) - 1
        if position < 0:
            continue  # all of it comes before the first boundary: a server feeds it
        start = max(first, boundaries[position])
        content_end = extents[turns[position]].end or start
        marker_start = min(max(start, content_end), end)
        yield TargetSpan(message=turns[position], start=start, marker_start=marker_start, end=end)


def _extents(spans: Sequence[Span], count: int) -> list[_Extent]:
    extents = [_Extent(None, None, None)] * count
    for span in spans:
        message = span.origin.message
        if message is None:
            continue
        head, start, end = extents[message]
        head = span.start if head is None else head
        if not span.origin.in_header:
            start, end = span.start if start is None else start, span.end
        extents[message] = _Extent(head, start, end)
    return extents


def _boundaries(
    text: str, turns: Sequence[int], extents: Sequence[_Extent], renderings: Renderings, name: str
) -> list[int]:
    last = _rendered_boundary(text, turns[-1], renderings, name)
    if len(turns) == 1:
        return [last]
    closed = renderings.prefix(turns[-1], prompt=False)
    header = text[len(closed) : last] if text.startswith(closed) else ""
    # Where the text of the messages before each one ends.
    ends = list(accumulate((extent.end or 0 for extent in extents), max, initial=0))
    between = text[ends[turns[-1]] : last] if _follows_text(turns[-1], extents) else ""
    boundaries = []
    for turn in turns[:-1]:
        follows = between if _follows_text(turn, extents) else ""
        found = _header_end(text, header, follows, ends[turn], extents[turn].start)
        boundaries.append(found if found is not None else _rendered_boundary(text, turn, renderings, name))
    return [*boundaries, last]


def _follows_text(turn: int, extents: Sequence[_Extent]) -> bool:
    """Whether the message right before has text of its own, so that one header alone stands between them."""
    return turn > 0 and extents[turn - 1].end is not None


def _header_end(text: str, header: str, between: str, before: int, start: int | None) -> int | None:
    """The end of the header between the text of earlier messages (`before`) and the turn's own; None where in doubt.

    That is the one occurrence of `header`; for a template that always ends in a header, it is the end of `between`, all
    that stands between another turn's boundary and the messages before it.
    """
    if start is None:
        return None
    if header and text.count(header, before, start) == 1:
        return text.index(header, before, start) + len(header)
    return before + len(between) if between and text.startswith(between, before, start) else None


def _rendered_boundary(text: str, turn: int, renderings: Renderings, name: str) -> int:
    prompt = renderings.prefix(turn, prompt=True)
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


def _next_heads(extents: Sequence[_Extent], length: int) -> list[int]:
    """For each message, where the first character of any later one stands, its header's included."""
    heads = [extent.head if extent.head is not None else length for extent in extents]
    return [*accumulate(reversed(heads[1:]), min, initial=length)][::-1]


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
