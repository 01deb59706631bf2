"""Finds out that a text has too many tokens without encoding all of it.

Two proofs are tried; where neither applies, the text is encoded whole.

- The length of the text, divided by that of the longest token (`templatekit.tokens.token_bounds`).
- The start of the text, encoded up to a word boundary. Where a tokenizer encodes words separately and no text becomes a
  control id, these ids are the first ids of the text. The boundary is chosen far from the text of control tokens, so
  that none is cut.

A text without a trained token is dropped for another reason than its length, so one trained token must be certain too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from templatekit.tokens.encoder import Encoder
from templatekit.tokens.word_boundaries import WORD_BOUNDARY
from templatekit.types import LossSpan, RenderedText, TokenizedExample

LONG_TEXT = 1 << 16
"""Characters of the longest text that is always encoded whole: that takes some 20 ms, and errors name its length."""
_LONG_TEXT_PER_TOKEN = 16
"""A text is also encoded whole if it has no more characters than this for each token of the limit."""
_START_PER_TOKEN = 8
"""Characters of the first start that is tried, for each token of the limit; a word of English has fewer per token."""
_GROWTH = 4
"""How many times longer the next start is."""
_LONGEST_WORD = 64
"""Characters in which a word boundary is looked for at least."""

_VISIBLE = re.compile(r"\S")


@dataclass(frozen=True, kw_only=True)
class PartialExample(TokenizedExample):
    """A text that is surely longer than a limit and surely has a trained token, of which only a start is encoded.

    `input_ids` and `loss_weights` are the first ones: more than the limit, or none where ids are not needed. `rendered`
    and `loss_spans` are those of the whole text.
    """

    least_tokens: int
    """The whole text has at least this many tokens."""
    start: RenderedText
    """The text that is encoded: the start of the whole one, or nothing."""


def length_of(tokenized: TokenizedExample) -> int:
    """The number of tokens, as far as it is known."""
    return tokenized.least_tokens if isinstance(tokenized, PartialExample) else len(tokenized)


def length_in_words(tokenized: TokenizedExample) -> str:
    """The number of tokens for a message."""
    least = "at least " if isinstance(tokenized, PartialExample) else ""
    return f"{least}{length_of(tokenized)}"


def partial_example(
    encoder: Encoder, rendered: RenderedText, spans: Sequence[LossSpan], limit: int, *, needs_ids: bool
) -> PartialExample | None:
    """A text that surely has more than `limit` tokens, one of them trained; None where this is not certain.

    With `needs_ids`, it has the first ids, more than `limit`.
    """
    text = rendered.text
    if len(text) <= longest_whole(limit) or encoder.boundary != "cut":
        return None
    bounds = encoder.tokenizer.bounds
    if bounds is None or not bounds.hold_for(text):
        return None
    if not needs_ids and (least := bounds.least_tokens(text)) > limit:
        if not _has_trained_character(text, spans, bounds.characters_of_a_token(text)):
            return None
        nothing = replace(rendered, text="", spans=(), target_spans=())
        return PartialExample(
            input_ids=(),
            loss_weights=(),
            rendered=rendered,
            loss_spans=tuple(spans),
            least_tokens=least,
            start=nothing,
        )
    if not encoder.tokenizer.encodes_starts_alike or "\ufffe" in text:
        return None  # a text with a placeholder of control tokens is split again
    size = _START_PER_TOKEN * limit
    while size <= len(text) // 2 and (end := _word_boundary(encoder, text, size)) is not None:
        start = _start_of(rendered, end)
        encoded = encoder.encode(start, spans_before(spans, end))
        if not _is_enough(encoded, limit):
            size = max(_GROWTH * end, end + 1)
            continue
        if encoded.trained_tokens or _has_trained_character(text, spans, bounds.characters_of_a_token(text)):
            return PartialExample(
                input_ids=encoded.input_ids,
                loss_weights=encoded.loss_weights,
                rendered=rendered,
                loss_spans=tuple(spans),
                least_tokens=len(encoded),
                start=start,
            )
        return None
    return None


def _is_enough(start: TokenizedExample, limit: int) -> bool:
    """Whether the tokens of a start show that the text has more than `limit`."""
    return len(start) > limit


def longest_whole(limit: int) -> int:
    """Characters of the longest text that is always encoded whole."""
    return max(LONG_TEXT, _LONG_TEXT_PER_TOKEN * limit)


def _has_trained_character(text: str, spans: Sequence[LossSpan], characters_of_a_token: int) -> bool:
    """Whether a token is surely trained: one with a visible character that is surely not in the first token."""
    first = _VISIBLE.search(text)
    if first is None:
        return False
    later = first.start() + characters_of_a_token
    return any(span.weight and _VISIBLE.search(text, max(span.start, later), span.end) for span in spans)


def _word_boundary(encoder: Encoder, text: str, size: int) -> int | None:
    """A word boundary after `size` characters, before about twice as many, with no control token's text near it."""
    reach = max((len(token) for token in encoder.tokenizer.control_tokens), default=0)
    last = min(2 * size + _LONGEST_WORD, len(text))
    while size < last and (boundary := WORD_BOUNDARY.search(text, size, last)):
        end = boundary.start()
        if not encoder.contains_control_text(text, max(end - reach, 0), end + reach):
            return end
        size = end + 1
    return None


def _start_of(rendered: RenderedText, end: int) -> RenderedText:
    spans = tuple(replace(span, end=min(span.end, end)) for span in rendered.spans if span.start < end)
    return replace(rendered, text=rendered.text[:end], spans=spans, target_spans=())


def spans_before(spans: Sequence[LossSpan], end: int) -> tuple[LossSpan, ...]:
    """The loss spans of the first `end` characters."""
    return tuple(replace(span, end=min(span.end, end)) for span in spans if span.start < end)
