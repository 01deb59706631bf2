"""The one place that knows what is too long, and how it is made to fit.

`turns` and `context` shorten the conversation and have the template render what is left, so that headers, BOS and the
system preamble are those of a conversation that never was longer. `response` keeps the ids that it has and lets the
answer's end go. No policy cuts a header, a control token or an end marker; what cannot be made to fit is refused.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from templatekit.errors import RecordError
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.supervision import loss_spans
from templatekit.types import Example, RenderedText, TokenizedExample, TrainOn, Truncation


class Fitted(NamedTuple):
    """A sample that is not too long."""

    example: Example
    """With `turns` and `context` what is left of it; with `response` as it was."""
    tokenized: TokenizedExample


class Limit:
    """The greatest length of a sample, with the policy for longer ones."""

    def __init__(
        self,
        max_length: int,
        policy: Truncation,
        *,
        render: Callable[[Example, int], RenderedText],
        encoder: Encoder,
        train_on: TrainOn,
    ) -> None:
        """`render` gives the text of an example and its row, as the template would without any limit."""
        self.max_length = max_length
        self.policy = policy
        self._render = render
        self._encoder = encoder
        self._train_on: TrainOn = train_on

    def fit(self, example: Example, tokenized: TokenizedExample) -> Fitted:
        """The sample as it is where it is short enough, else shortened; `truncated` tells how.

        Raises `RecordError` (reason `too_long`) for a sample that the policy does not bring down to the limit.
        """
        if len(tokenized) <= self.max_length:
            return Fitted(example, tokenized)
        if self.policy == "turns":
            fitted = self._without_old_turns(example, tokenized)
        elif self.policy == "context":
            fitted = self._with_less_context(example, tokenized)
        elif self.policy == "response":
            fitted = Fitted(example, self._with_less_response(example, tokenized))
        else:
            raise self._too_long(tokenized)
        return fitted._replace(tokenized=replace(fitted.tokenized, truncated=self.policy))

    def _too_long(self, tokenized: TokenizedExample, but: str = "") -> RecordError:
        found = f"too long; found {len(tokenized)} tokens; expected at most {self.max_length}"
        return RecordError(found + (f"; {but}" if but else ""), reason="too_long")

    def _without_old_turns(self, example: Example, whole: TokenizedExample) -> Fitted:
        """Drops the fewest of the oldest turns. A turn is a user's message and all that follows up to the next one."""
        messages = example.messages
        head = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
        last = _last_trained(whole)
        starts = [index for index in range(head + 1, last + 1) if messages[index].role == "user"]
        tried: dict[int, Fitted] = {}
        refusals: list[RecordError] = []

        def fits(start: int) -> bool:
            shorter = replace(example, messages=messages[:head] + messages[start:])
            try:
                tried[start] = Fitted(shorter, self._encode(shorter, whole, head=head, gone=start - head))
            except RecordError as error:  # this template cannot express a conversation that begins here
                refusals.append(error)
                return False
            tokenized = tried[start].tokenized
            return self._is_short(tokenized) and _last_trained(tokenized) == last - (start - head)

        place = bisect_left(starts, True, key=fits)
        if place < len(starts):
            return tried[starts[place]]
        if not starts:
            raise self._too_long(whole, "it has one turn, which is never cut (--truncation turns)")
        alone = tried.get(starts[-1])
        raise self._too_long(
            whole, f"its last turn alone has {len(alone.tokenized)}" if alone else f"of fewer turns: {refusals[-1]}"
        )

    def _with_less_context(self, example: Example, whole: TokenizedExample) -> Fitted:
        """Shortens the contexts from their ends, the oldest first, and leaves at least a character of each.

        A template may word a prompt without a context otherwise, so none is cut to nothing.
        """
        fitted = Fitted(example, whole)
        for index, message in enumerate(example.messages):
            if _first_character(message.context) < len(message.context):
                fitted = self._with_shorter_context(fitted, index)
                if self._is_short(fitted.tokenized):
                    return fitted
        if fitted.tokenized is whole:
            raise self._too_long(whole, "it has no context to shorten (--truncation context)")
        raise self._too_long(whole, f"with a character of its context it still has {len(fitted.tokenized)}")

    def _with_shorter_context(self, long: Fitted, index: int) -> Fitted:
        """With the most of this message's context that leaves the sample short enough, or with a character of it."""
        message = long.example.messages[index]
        least = _first_character(message.context)
        attempts = {len(message.context): long}

        def at(end: int) -> Fitted:
            """With so many characters of the context."""
            if end not in attempts:
                messages = list(long.example.messages)
                messages[index] = replace(message, context=message.context[: _whole(message.context, end)])
                shorter = replace(long.example, messages=tuple(messages))
                attempts[end] = Fitted(shorter, self._encode(shorter, long.tokenized))
            return attempts[end]

        def size(end: int) -> int:
            return len(at(end).tokenized)

        low = least if size(least) <= self.max_length else _farther(message.context, size, least, self.max_length)
        return at(least if low is None else _longest(message.context, size, low, self.max_length))

    def _with_less_response(self, example: Example, whole: TokenizedExample) -> TokenizedExample:
        """Keeps the longest run of ids that ends in the last trained answer's own text, and at a whole character.

        What follows the answer goes first: where that is enough, the answer and its end marker stay whole.
        """
        rendered = whole.rendered
        trained = [target for target in rendered.target_spans if _is_trained(whole, target.start, target.end)]
        if not trained:
            raise self._too_long(whole, "it has no trained answer to shorten (--truncation response)")
        message = trained[-1].message
        start = next(target.start for target in trained if target.message == message)
        own = [
            (max(span.start, start), min(span.end, trained[-1].marker_start))
            for span in rendered.spans
            if (span.origin.kind, span.origin.message) == ("field", message)
            and span.origin.field in ("content", "reasoning")
        ]
        if example.messages[message].tool_calls:
            own = []  # half a call, or an answer that stops before its call, is none
        offsets = self._encoder.offsets(rendered, whole.loss_spans)
        for count in range(self.max_length, 0, -1):
            (_, end), (following, _) = offsets[count - 1], offsets[count]
            if end <= start:
                break
            if end > following:
                continue  # the next token holds a part of the same character
            if not rendered.text[end:following].isspace():
                end = following  # what has no token of its own was composed into this one
            if end == trained[-1].end or (_whole(rendered.text, end) == end and any(a < end <= b for a, b in own)):
                shorter = _first(whole, count, end)
                # Nothing predicts the first token: of a text without a prompt it does not count.
                if shorter.trained_tokens and _is_trained(shorter, start, end):
                    return shorter
        prompt = sum(1 for _, end in offsets if end <= start)
        if example.messages[message].tool_calls:
            raise self._too_long(whole, "a tool call is never cut (--truncation response)")
        raise self._too_long(whole, f"its prompt has {prompt}, and no text of the answer fits behind it")

    def _encode(self, example: Example, like: TokenizedExample, *, head: int = 0, gone: int = 0) -> TokenizedExample:
        """A shortened example anew, `gone` messages fewer behind `head`; no other text is trained than was before."""
        rendered = self._render(example, like.row)
        answers = {target.message - gone for target in like.rendered.target_spans}
        targets = tuple(target for target in rendered.target_spans if target.message in answers)
        rendered = replace(
            rendered,
            target_spans=targets,
            sample=like.rendered.sample,
            samples=like.rendered.samples,
            history=max(min(like.rendered.history, head), like.rendered.history - gone),
        )
        return self._encoder.encode(rendered, loss_spans(rendered, self._train_on))

    def _is_short(self, tokenized: TokenizedExample) -> bool:
        return len(tokenized) <= self.max_length and tokenized.trained_tokens > 0


def _last_trained(tokenized: TokenizedExample) -> int:
    """The message in which the last trained character stands; the last of all where nothing is trained."""
    rendered = tokenized.rendered
    end = max((span.end for span in tokenized.loss_spans if span.weight > 0), default=len(rendered.text))
    messages = (span.origin.message for span in rendered.spans if span.start < end)
    return max((message for message in messages if message is not None), default=0)


def _is_trained(tokenized: TokenizedExample, start: int, end: int) -> bool:
    """Whether any of these characters carries loss."""
    return any(span.weight > 0 and span.start < end and span.end > start for span in tokenized.loss_spans)


def _first(whole: TokenizedExample, count: int, end: int) -> TokenizedExample:
    """The first `count` tokens, which are the text up to `end`."""
    rendered = whole.rendered
    return replace(
        whole,
        input_ids=whole.input_ids[:count],
        loss_weights=whole.loss_weights[:count],
        loss_spans=tuple(replace(span, end=min(span.end, end)) for span in whole.loss_spans if span.start < end),
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


def _longest(text: str, size: Callable[[int], int], low: int, limit: int) -> int:
    """How many characters of a text keep its size within the limit; `low` of them do, all of them do not."""
    high = len(text)
    halve = False
    while high - low > 1:
        share = 0.5 if halve else (limit - size(low)) / (size(high) - size(low))
        middle = min(max(low + round((high - low) * share), low + 1), high - 1)
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
        halve = not halve
    while (farther := _farther(text, size, low, limit)) is not None:
        low = farther
    return low


def _farther(text: str, size: Callable[[int], int], low: int, limit: int) -> int | None:
    """An end behind `low`, as far as the word and the blanks there go, up to which a text is within the limit.

    A word, or one with a blank behind it, may take fewer tokens than its beginning.
    """
    run = _REST.match(text, low)
    ends = range(min(run.end(), len(text) - 1), low, -1) if run else ()
    return next((end for end in ends if size(end) <= limit), None)


_REST = re.compile(r"\S{0,32}\s{0,32}")

_JOINED = re.compile(
    "(?<=\u200d)|(?=[\u200d\u1160-\u11ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f])|(?<=\r)(?=\n)"
    "|(?<=[\U0001f1e6-\U0001f1ff])(?=[\U0001f1e6-\U0001f1ff])"
)
"""Places within what a reader takes for one character: joined emoji and their skin tones, Korean syllables, flags."""


def _whole(text: str, end: int) -> int:
    """The end, or the nearest place before it where no character as a reader sees it is cut."""
    while 0 < end < len(text) and (unicodedata.category(text[end])[0] == "M" or _JOINED.match(text, end)):
        end -= 1
    return end


def _first_character(text: str) -> int:
    """Where the first character that is not blank ends."""
    blank = len(text) - len(text.lstrip())
    return next((end for end in range(blank + 1, len(text)) if _whole(text, end) == end), len(text))
