"""Truncation: the only place that decides which samples are too long, and shortens them.

`turns` and `context` shorten the conversation and render the rest again, so that headers, BOS and the system preamble
are those of a conversation that was short from the start. `response` keeps the first ids and drops the end of the
answer. No policy cuts through a header, a control token or an end marker. A sample that cannot be shortened enough is
refused.

A text that is far too long is not encoded whole where its outcome is certain before (`templatekit.tokens.long_texts`).
The search of `context` then starts from the least number of tokens that the text has, and ends at the same length.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from templatekit.errors import RecordError
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.long_texts import PartialExample, length_in_words, length_of, partial_example, spans_before
from templatekit.tokens.supervision import loss_spans
from templatekit.types import Example, LossSpan, RenderedText, TokenizedExample, TrainOn, Truncation


class FittedSample(NamedTuple):
    """A sample that is short enough."""

    example: Example
    """The shortened conversation with `turns` and `context`; the original one with `response`."""
    tokenized: TokenizedExample


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLimit:
    """The maximum length of a sample, with the policy for longer ones."""

    max_length: int
    policy: Truncation
    render: Callable[[Example, int], RenderedText]
    """Returns the text of an example, given with its row, as the template renders it without a limit."""
    encoder: Encoder
    train_on: TrainOn

    def partial_example(self, rendered: RenderedText, spans: Sequence[LossSpan]) -> PartialExample | None:
        """A text that is surely too long, encoded as far as `fit` needs; None where it must be encoded whole."""
        return partial_example(self.encoder, rendered, spans, self.max_length, needs_ids=self.policy == "response")

    def fit(self, example: Example, tokenized: TokenizedExample) -> FittedSample:
        """The sample itself if it is short enough, else a shortened one, whose `truncated` names the policy.

        Raises `RecordError` (reason `too_long`) for a sample that the policy cannot shorten to the limit.
        """
        if length_of(tokenized) <= self.max_length:
            return FittedSample(example, tokenized)
        if self.policy == "turns":
            fitted = self._without_old_turns(example, tokenized)
        elif self.policy == "context":
            fitted = self._with_less_context(example, tokenized)
        elif self.policy == "response":
            fitted = FittedSample(example, self._with_less_response(example, tokenized))
        else:
            raise self._too_long(tokenized)
        return fitted._replace(tokenized=replace(fitted.tokenized, truncated=self.policy))

    def _too_long(self, tokenized: TokenizedExample, but: str = "") -> RecordError:
        found = f"too long; found {length_in_words(tokenized)} tokens; expected at most {self.max_length}"
        return RecordError(found + (f"; {but}" if but else ""), reason="too_long")

    def _without_old_turns(self, example: Example, original: TokenizedExample) -> FittedSample:
        """Drop as few of the oldest turns as possible. A turn is a user's message and all up to the next one."""
        messages = example.messages
        first_turn = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
        last = _last_trained(original)
        starts = [index for index in range(first_turn + 1, last + 1) if messages[index].role == "user"]
        tried: dict[int, FittedSample] = {}
        refusals: list[RecordError] = []

        def fits(start: int) -> bool:
            shorter = replace(example, messages=messages[:first_turn] + messages[start:])
            try:
                tried[start] = FittedSample(
                    shorter, self._encode(shorter, original, leading=first_turn, dropped=start - first_turn)
                )
            except RecordError as error:  # this template cannot render a conversation that starts here
                refusals.append(error)
                return False
            tokenized = tried[start].tokenized
            return self._is_short(tokenized) and _last_trained(tokenized) == last - (start - first_turn)

        index = bisect_left(starts, True, key=fits)
        if index < len(starts):
            return tried[starts[index]]
        if not starts:
            raise self._too_long(original, "it has one turn, which is never cut (--truncation turns)")
        last_turn = tried.get(starts[-1])
        left = f"its last turn alone has {length_in_words(last_turn.tokenized)}" if last_turn else ""
        raise self._too_long(original, left or f"of fewer turns: {refusals[-1]}")

    def _with_less_context(self, example: Example, original: TokenizedExample) -> FittedSample:
        """Cut the ends of the contexts, the oldest message first, and leave at least one character of each.

        No context is removed completely, because a template may phrase a prompt without a context differently.
        """
        fitted = FittedSample(example, original)
        for index, message in enumerate(example.messages):
            if _first_character(message.context) < len(message.context):
                fitted = self._with_shorter_context(fitted, index)
                if self._is_short(fitted.tokenized):
                    return fitted
        if fitted.tokenized is original:
            raise self._too_long(original, "it has no context to shorten (--truncation context)")
        raise self._too_long(
            original, f"with a character of its context it still has {length_in_words(fitted.tokenized)}"
        )

    def _with_shorter_context(self, sample: FittedSample, index: int) -> FittedSample:
        """Keep as much of this message's context as fits, or one character of it if nothing fits."""
        message = sample.example.messages[index]
        shortest = _first_character(message.context)
        attempts = {len(message.context): sample}

        def at(end: int) -> FittedSample:
            """The sample with the first `end` characters of the context."""
            if end not in attempts:
                messages = list(sample.example.messages)
                messages[index] = replace(message, context=message.context[: _character_boundary(message.context, end)])
                shorter = replace(sample.example, messages=tuple(messages))
                attempts[end] = FittedSample(shorter, self._encode(shorter, sample.tokenized))
            return attempts[end]

        def size(end: int) -> int:
            return length_of(at(end).tokenized)

        low = (
            shortest
            if size(shortest) <= self.max_length
            else _later_end(message.context, size, shortest, self.max_length)
        )
        return at(shortest if low is None else _longest_end(message.context, size, low, self.max_length))

    def _with_less_response(self, example: Example, original: TokenizedExample) -> TokenizedExample:
        """Keep as many ids as fit, up to an end within the last trained answer's own text, between two characters.

        Text after the answer is dropped first. If that is enough, the answer and its end marker stay whole.
        """
        rendered = original.rendered
        trained = [target for target in rendered.target_spans if _is_trained(original, target.start, target.end)]
        if not trained:
            raise self._too_long(original, "it has no trained answer to shorten (--truncation response)")
        message = trained[-1].message
        start = next(target.start for target in trained if target.message == message)
        own = [
            (max(span.start, start), min(span.end, trained[-1].marker_start))
            for span in rendered.spans
            if (span.origin.kind, span.origin.message) == ("field", message)
            and span.origin.field in ("content", "reasoning")
        ]
        if example.messages[message].tool_calls:
            own = []  # no cut: half a call is useless, and so is an answer without its call
        offsets = self._offsets(original)
        for count in range(self.max_length, 0, -1):
            (_, end), (following, _) = offsets[count - 1], offsets[count]
            if end <= start:
                break
            if end > following:
                continue  # the next token contains a part of the same character
            if not rendered.text[end:following].isspace():
                end = following  # characters without a token of their own were composed into this token
            if end == trained[-1].end or (
                _character_boundary(rendered.text, end) == end and any(a < end <= b for a, b in own)
            ):
                shorter = _first_tokens(original, count, end)
                # Nothing predicts the first token, so an answer that is only this token is not trained.
                if shorter.trained_tokens and _is_trained(shorter, start, end):
                    return shorter
        prompt = sum(1 for _, end in offsets if end <= start)
        at_least = "at least " if isinstance(original, PartialExample) and prompt == len(offsets) else ""
        if example.messages[message].tool_calls:
            raise self._too_long(original, "a tool call is never cut (--truncation response)")
        raise self._too_long(original, f"its prompt has {at_least}{prompt}, and no text of the answer fits after it")

    def _encode(
        self, example: Example, original: TokenizedExample, *, leading: int = 0, dropped: int = 0
    ) -> TokenizedExample:
        """Render and encode a shortened example, which lacks `dropped` messages after the first `leading` ones.

        Only turns that were trained in the original are trained.
        """
        rendered = self.render(example, original.row)
        answers = {target.message - dropped for target in original.rendered.target_spans}
        targets = tuple(target for target in rendered.target_spans if target.message in answers)
        rendered = replace(
            rendered,
            target_spans=targets,
            sample=original.rendered.sample,
            samples=original.rendered.samples,
            history=max(min(original.rendered.history, leading), original.rendered.history - dropped),
        )
        spans = loss_spans(rendered, self.train_on)
        partial = self.partial_example(rendered, spans)
        return self.encoder.encode(rendered, spans) if partial is None else partial

    def _offsets(self, tokenized: TokenizedExample) -> list[tuple[int, int]]:
        """The characters of each token that is known."""
        if isinstance(tokenized, PartialExample):
            spans = spans_before(tokenized.loss_spans, len(tokenized.start.text))
            return self.encoder.offsets(tokenized.start, spans)
        return self.encoder.offsets(tokenized.rendered, tokenized.loss_spans)

    def _is_short(self, tokenized: TokenizedExample) -> bool:
        return length_of(tokenized) <= self.max_length and tokenized.trained_tokens > 0


def _last_trained(tokenized: TokenizedExample) -> int:
    """The index of the message with the last trained character; of the last message where nothing is trained."""
    rendered = tokenized.rendered
    end = max((span.end for span in tokenized.loss_spans if span.weight > 0), default=len(rendered.text))
    messages = (span.origin.message for span in rendered.spans if span.start < end)
    return max((message for message in messages if message is not None), default=0)


def _is_trained(tokenized: TokenizedExample, start: int, end: int) -> bool:
    """Whether any of these characters has a loss weight."""
    return any(span.weight > 0 and span.start < end and span.end > start for span in tokenized.loss_spans)


def _first_tokens(original: TokenizedExample, count: int, end: int) -> TokenizedExample:
    """The first `count` tokens, which are the text up to `end`."""
    rendered = original.rendered
    return TokenizedExample(
        input_ids=original.input_ids[:count],
        loss_weights=original.loss_weights[:count],
        loss_spans=spans_before(original.loss_spans, end),
        rendered=replace(
            rendered,
            text=rendered.text[:end],
            spans=tuple(replace(span, end=min(span.end, end)) for span in rendered.spans if span.start < end),
            target_spans=tuple(
                replace(target, marker_start=min(target.marker_start, end), end=min(target.end, end))
                for target in rendered.target_spans
                if target.start < end
            ),
        ),
    )


def _longest_end(text: str, size: Callable[[int], int], low: int, limit: int) -> int:
    """The largest end up to which a text is within the limit; `low` is within it, the whole text is not."""
    high = len(text)
    halve = False
    while high - low > 1:
        share = 0.5 if halve else (limit - size(low)) / (size(high) - size(low))
        middle = min(max(low + round((high - low) * share), low + 1), high - 1)
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
        halve = not halve
    while (farther := _later_end(text, size, low, limit)) is not None:
        low = farther
    return low


def _later_end(text: str, size: Callable[[int], int], low: int, limit: int) -> int | None:
    """The last end after `low`, within the same word and the whitespace after it, that is still within the limit.

    A whole word, or a word with the blank after it, may have fewer tokens than its first characters.
    """
    run = _REST_OF_WORD.match(text, low)
    ends = range(min(run.end(), len(text) - 1), low, -1) if run else ()
    return next((end for end in ends if size(end) <= limit), None)


_REST_OF_WORD = re.compile(r"\S{0,32}\s{0,32}")

_INSIDE_CHARACTER = re.compile(
    "(?<=\u200d)|(?=[\u200d\u1160-\u11ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f])|(?<=\r)(?=\n)"
    "|(?<=[\U0001f1e6-\U0001f1ff])(?=[\U0001f1e6-\U0001f1ff])"
)
"""Positions inside what a reader sees as one character: joined emoji, skin tones, Korean syllables, flags, `\\r\\n`."""


def _character_boundary(text: str, end: int) -> int:
    """The end, or the nearest position before it that cuts through no character as a reader sees it."""
    while 0 < end < len(text) and (unicodedata.category(text[end])[0] == "M" or _INSIDE_CHARACTER.match(text, end)):
        end -= 1
    return end


def _first_character(text: str) -> int:
    """The end of the first character that is not whitespace."""
    blank = len(text) - len(text.lstrip())
    return next((end for end in range(blank + 1, len(text)) if _character_boundary(text, end) == end), len(text))
