"""Where an answer ends in the next prompt, and the ids of what stands behind it.

A bridge is encoded by itself, as it is encoded within the whole prompt. The prompt is cut where the answer ends. Behind
a control token that changes no id, since tokenizers cut there themselves; elsewhere it is the cut that training makes
at the end of what it trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from templatekit.formats.rendering import Rendering
from templatekit.serving.branches import Dropped
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import COMPUTED, LossSpan, RenderedText, SpecialTokens

_LETTER = "x"
_OPEN_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")
_END_OF_TAG = re.compile(r"[^<>\[\]\s]*[>\]]")
_FIELDS = ("reasoning", "content", "tool_calls")


class BridgeEncoder:
    """Encodes prompts, and texts that stand behind given ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Each text is encoded once, and is short: to cache its words would only take memory.
        self._encoder = Encoder(tokenizer, reuse=False)
        self._control = {token.id: token.text for token in tokenizer.control_tokens.values()}
        letter = Rendering.piece(_LETTER, COMPUTED)
        self._letter_length = len(self.ids(letter, ()))

    def ids(self, rendering: Rendering, roles: Sequence[str]) -> tuple[int, ...]:
        """The ids of a whole text."""
        return self._encode(rendering, roles, ())

    def ids_behind(self, last: int, rendering: Rendering, roles: Sequence[str]) -> tuple[int, ...]:
        """The ids of a text that stands behind the id `last`."""
        if not rendering.text:
            return ()
        if last in self._control:
            return self._encode(Rendering.literal(self._control[last]).followed_by(rendering), roles, ())[1:]
        # The letter stands for the text before, so that the tokenizer puts no dummy prefix behind it.
        whole = Rendering.piece(_LETTER, COMPUTED).followed_by(rendering)
        cut, end = len(_LETTER), len(whole.text)
        losses = (LossSpan(start=0, end=cut, weight=0.0), LossSpan(start=cut, end=end, weight=0.0))
        return self._encode(whole, roles, losses)[self._letter_length :]

    def _encode(self, rendering: Rendering, roles: Sequence[str], losses: Sequence[LossSpan]) -> tuple[int, ...]:
        rendered = RenderedText(text=rendering.text, spans=rendering.spans, roles=tuple(roles))
        return self._encoder.encode(rendered, losses).input_ids


@lru_cache(maxsize=8)
def bridge_encoder(tokenizer: Tokenizer) -> BridgeEncoder:
    """The encoder for a tokenizer, made once for all dialogues."""
    return BridgeEncoder(tokenizer)


class AnswerEnd(NamedTuple):
    """Where an answer ends in a prompt."""

    own: int
    """The offset behind the answer's own characters."""
    behind: int
    """The offset behind its end marker."""


def answer_end(prompt: Rendering, turn: int, markers: Sequence[str]) -> AnswerEnd | None:
    """Where the answer with this index ends in a prompt; None if the prompt has no character of it.

    It is the first of the literals behind its own characters that holds one of the texts `markers`, of which the first
    that is found counts. A template may write a part of an answer once more in a later turn, as the header of a tool's
    result.
    """
    ends = [span.end for span in prompt.spans if span.origin.message == turn and not span.origin.in_header]
    literals = [(end, prompt.literal_from(end)) for end in ends]
    for marker in filter(None, markers):
        for end, literal in literals:
            if marker in literal:
                return AnswerEnd(end, end + literal.index(marker) + len(marker))
    return AnswerEnd(ends[-1], ends[-1]) if ends else None


def shared_end_marker(generation_prompt: str, tokens: SpecialTokens) -> str:
    """The special token that ends a user's message, if another one opens the answer; empty if there is none.

    A template that ends the last answer with a token of its own, as gpt-oss does with `<|return|>`, ends earlier
    answers as it ends users' messages. `generation_prompt` is what it writes behind a user's text.
    """
    positions = {token: generation_prompt.find(token) for token in tokens.special if token in generation_prompt}
    first = min(positions, key=lambda token: (positions[token], -len(token)), default="")
    behind = generation_prompt[positions[first] + len(first) :] if first else ""
    return first if any(token in behind for token in positions if token != first) else ""


def dropped_fields(before: Rendering, after: Rendering) -> Iterator[Dropped]:
    """The fields of messages that one text holds and the next one does not."""
    kept = set(_texts_of_fields(after))
    for (message, name), text in _texts_of_fields(before).items():
        if (message, name) not in kept:
            yield Dropped(message, name, text)


def _texts_of_fields(rendering: Rendering) -> dict[tuple[int, str], str]:
    texts: dict[tuple[int, str], str] = {}
    for span in rendering.spans:
        message, name = span.origin.message, span.origin.field
        if message is not None and name in _FIELDS:
            texts[message, name] = texts.get((message, name), "") + rendering.text[span.start : span.end]
    return texts


def difference(one: str, other: str) -> tuple[str, str]:
    """The parts of two texts between what they begin with alike and what they end with alike, with tags kept whole."""
    start = _common_length(one, other)
    before, one, other = one[:start], one[start:], other[start:]
    end = _common_length(one[::-1], other[::-1])
    one, other, behind = one[: len(one) - end], other[: len(other) - end], one[len(one) - end :]
    # The same text may be left out at several places, as in `<a><b>` without `<a>`.
    for shift in range(_common_length(before[::-1], (one or other)[::-1]) + 1 if not (one and other) else 0):
        moved = [before[len(before) - shift :] + text[: len(text) - shift] if text else "" for text in (one, other)]
        if (moved[0] or moved[1]).startswith(("<", "[")):
            return moved[0], moved[1]
    if (one or other) and (opened := _OPEN_TAG.search(before)):
        one, other = opened[0] + one, opened[0] + other
    if (_OPEN_TAG.search(one) or _OPEN_TAG.search(other)) and (closed := _END_OF_TAG.match(behind)):
        one, other = one + closed[0], other + closed[0]
    return one, other


def _common_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike, found by halving, which takes less time than going along."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
