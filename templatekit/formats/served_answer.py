"""Builds an answer as it is served, where the template renders the finished conversation otherwise.

A server feeds the generation prompt, and the model goes on from there. Where that prompt opens a thought (`<think>`) or
a channel that the rendered conversation lacks, or differs from its header in blank space, the text to train is built
from three parts: the prompt as it is fed; the answer in the template's own form; what the template writes after it.

The form of the answer is found without knowing the model:

1. If the content itself begins with the tag that the prompt opens, or closes it, the rest of the content follows.
2. If the template prints a thought behind this prompt, as it does for an answer that has one, that rendering gives the
   literals around the thought. An answer without a thought gets those literals around an empty one. So it is where the
   prompt begins the thought in words, such as `Here are my reasoning steps:`, and the template prints thoughts there.
3. Else the answer's own characters follow the prompt directly, after a closing tag if the prompt leaves a tag open:
   that of its kind which the template's source names, as in `content.split('</think>')`, or for a tag named after
   thinking that of XML. Where the opening tag stands on a line of its own, so does the closing one.

The third way asks that the prompt is one for this answer: up to the tag, the header in the conversation is that of the
prompt. So the prompts of judges, guards and reward models, which ask about a finished answer, stay refused.

An answer without a thought thus begins with an empty one, or closes the one that the prompt opens, if the template has
it so. `empty_thought` may ask for such answers without it, or for none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple, TypeAlias

from templatekit.errors import RecordError, TemplateError
from templatekit.formats.provenance import TrackedText
from templatekit.formats.rendering import Rendering
from templatekit.types import TEMPLATE, EmptyThought, Message, Origin, Span, field_origin

_LETTER = "x"
"""Rendered as a thought or as an answer, it shows the literals around one."""
_HEADER = re.compile(r"\W*assistant\W*", re.IGNORECASE)
"""Words that a prompt may have more than the conversation: a header."""
_TAG = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
_THOUGHT_TAG = re.compile(
    r"<[a-z_]*(?:think|thought|reason)[a-z_]*>|\[[A-Z_]*(?:THINK|THOUGHT|REASON)[A-Z_]*\]", re.IGNORECASE
)
"""A tag that opens a thought by its name, and is closed as in XML where the template names no other way."""
_OPENED = re.compile(rf"({_TAG.pattern})(\s*)$")
"""A tag at the end of a prompt, and the blank space behind it."""
_CHANNEL = r"\s*(?:thought|thinking|reasoning|analysis)?\s*"
"""What may stand in an empty thought: blank space, and the name of its channel in front."""
_OPENED_CHANNEL = re.compile(rf"({_TAG.pattern}){_CHANNEL}$")
"""A tag at the end of a prompt, and the name of its channel."""
_WORD = re.compile(rf"{_TAG.pattern}|\w+|\S")
"""A tag, a word or a sign."""

Messages: TypeAlias = tuple[Message, ...]
RenderFunction: TypeAlias = Callable[[Messages, bool], TrackedText]
"""Renders messages; if the second argument is true, as the prompt for the answer to them."""
TextFunction: TypeAlias = Callable[[Messages, bool], str]
"""The same for the first messages of the conversation, as plain text, which takes less time."""
FieldFunction: TypeAlias = Callable[[int, str], str]
"""The text of a message's field, by the message's index and the field's name."""
CoverFunction: TypeAlias = Callable[[Sequence[str], str], bool]
"""Whether texts have together as many characters as another one, without the blank space at its ends."""


class ExampleRenderer(NamedTuple):
    """Renders one example by one template."""

    render: RenderFunction
    text: TextFunction
    field_text: FieldFunction
    mentions: Collection[str]
    """The attributes and texts in the template's source."""
    covers: CoverFunction
    builds_answers: bool
    """Whether answers may be built: in chat templates."""
    empty_thought: EmptyThought = "keep"
    """What an answer without a thought gets where the template has an empty one for it."""

    def served(self, messages: Messages) -> Rendering:
        """These messages; an answer at their end as it is served."""
        return self.as_served(messages, Rendering.of(self.render(messages, False)))

    def as_served(self, messages: Messages, rendering: Rendering) -> Rendering:
        """The rendering of these messages with the answer at their end as it is served.

        It is the rendering itself where that starts with the prompt, or where no served form can be found. Raises
        `RecordError` for an answer that `empty_thought` does not allow.
        """
        before, answer = messages[:-1], messages[-1]
        if not self.builds_answers or answer.role != "assistant":
            return rendering
        if not any(message.role == "user" for message in before):
            return rendering
        served = self._behind_its_prompt(messages, rendering)
        if self.empty_thought == "keep" or answer.reasoning or not answer.weight:
            return served
        return _without_empty_thought(served, Rendering.of(self.render(before, True)), len(before), self.empty_thought)

    def _behind_its_prompt(self, messages: Messages, rendering: Rendering) -> Rendering:
        before = messages[:-1]
        text = self.text(before, True)
        if rendering.text.startswith(text):
            own_range = rendering.own_range(len(before))
            if own_range is None or own_range[0] >= len(text):
                if (filled := _in_empty_thought(self, messages, rendering, len(text))) is not None:
                    return filled
                try:
                    return _behind_open_thought(self, messages, rendering, len(text)) or rendering
                except _NoServedForm:
                    raise _open_thought(len(before), _OPENED.search(text)) from None
            # The answer itself begins with characters that the prompt has, such as `<think>`.
            answer = rendering.tail(len(text))
            if opened := _OPENED.search(text):
                if not any(name in messages[-1].content for name in _closing_tags(opened[1])):
                    raise _open_thought(len(before), opened)
                answer = _closed_by_template(answer, opened[1])
            return Rendering.of(self.render(before, True)).followed_by(answer)
        prompt = Rendering.of(self.render(before, True))
        try:
            return (
                _with_inline_thought(self, messages, rendering, prompt)
                or _around_empty_thought(self, messages, prompt)
                or _behind_begun_thought(self, messages, rendering, prompt)
                or _behind_prompt(self, messages, rendering, prompt)
                or rendering
            )
        except _NoServedForm:
            return rendering

    def own_range(self, messages: Messages, rendering: Rendering) -> tuple[int, int] | None:
        """The range of the last message's own characters in its rendering, or at which they would be; None if unclear.

        The place of an empty answer is found by rendering one letter there. A literal before that position does not end
        the answer. The range is empty, or holds what the template makes of an empty text, such as the two quotes of
        `tojson`.
        """
        found = rendering.own_range(len(messages) - 1)
        return found or _empty_range(messages, rendering, self.served(with_one_letter(messages)))

    def plain_own_range(self, messages: Messages, rendering: Rendering) -> tuple[int, int] | None:
        """The same in a rendering that is not as served."""
        found = rendering.own_range(len(messages) - 1)
        return found or _empty_range(messages, rendering, Rendering.of(self.render(with_one_letter(messages), False)))


def with_one_letter(messages: Messages) -> Messages:
    """The same messages, with one letter as the content of the last."""
    return (*messages[:-1], replace(messages[-1], content=_LETTER, parts=()))


def _empty_range(messages: Messages, rendering: Rendering, with_letter: Rendering) -> tuple[int, int] | None:
    own_range = with_letter.own_range(len(messages) - 1)
    if own_range is None:
        return None
    before = with_letter.text[: own_range[0]]
    if not rendering.text.startswith(before) and not rendering.text.startswith(before := before.rstrip()):
        return None
    start = end = len(before)
    for span in rendering.spans:
        if span.start == end and span.origin.kind == "computed":
            end = span.end
    return start, end


class _NoServedForm(Exception):
    """The answer cannot be told apart from its thought."""


def _open_thought(turn: int, opened: re.Match[str] | None) -> RecordError:
    """The error for a content that opens the thought behind this end of a prompt, and does not close it."""
    return RecordError(
        f"the content opens a thought ({opened[1] if opened else ''}) that nothing closes",
        field=f"messages[{turn}].content",
        reason="open_thought",
    )


def _without_empty_thought(
    rendering: Rendering, prompt: Rendering, turn: int, empty_thought: EmptyThought
) -> Rendering:
    """The rendering without the empty thought behind its prompt, if there is one.

    Raises `RecordError` where every empty thought is an error, and where the prompt itself opens it: an answer that
    followed directly would stand in the thought.
    """
    if not rendering.text.startswith(prompt.text):
        return rendering
    lead = rendering.literal_from(len(prompt.text))
    opened = _OPENED_CHANNEL.search(_header(prompt, turn)[1])
    if opened and any(lead.lstrip().startswith(name) for name in _closing_tags(opened[1])):
        raise _refused_thought(turn, empty_thought, opened[1])
    if (found := _empty_thought(lead)) is None:
        return rendering
    if empty_thought == "error":
        raise _refused_thought(turn, empty_thought, "")
    start, end = (len(prompt.text) + offset for offset in found)
    return rendering.cut(start).followed_by(rendering.tail(end))


def _refused_thought(turn: int, empty_thought: EmptyThought, opened: str) -> RecordError:
    """The error for an answer without a thought; `opened` is the end of the prompt if that opens one."""
    message = "the answer has no thought: give it one, or let it get an empty one (--empty-thought keep)"
    if empty_thought == "omit":
        message = (
            "an answer without a thought cannot follow its prompt directly (--empty-thought omit): give the row a "
            "thought, or let it get an empty one (--empty-thought keep)"
        )
    why = f"the prompt opens a thought ({opened.strip()})" if opened else "the template writes one for it"
    return RecordError(f"{message}; {why}", field=f"messages[{turn}].reasoning", reason="empty_thought")


def _empty_thought(text: str) -> tuple[int, int] | None:
    """The range of the first empty thought in a text, with the blank space behind it: `<think></think>`, `</think>`."""
    for tag in _TAG.finditer(text):
        for name in _closing_tags(tag[0]):
            if found := re.compile(_CHANNEL + re.escape(name) + r"\s*").match(text, tag.end()):
                return tag.start(), found.end()
        opening = f"{tag[0][0]}{tag[0][2:]}"
        if tag[0][1] == "/" and _THOUGHT_TAG.fullmatch(opening):
            return tag.start(), len(text) - len(text[tag.end() :].lstrip())
    return None


def _with_inline_thought(
    renderer: ExampleRenderer, messages: Messages, rendering: Rendering, prompt: Rendering
) -> Rendering | None:
    """The answer whose content holds the thought that the prompt opens: its tag is not repeated.

    The content may begin with the tag, or be all that a server gave, which begins behind it. Raises `_NoServedForm` for
    a thought that is not closed, and for one beside another in a field of its own.
    """
    turn, answer = len(messages) - 1, messages[-1]
    opened = _OPENED.search(_header(prompt, turn)[1])
    if opened is None:
        return None
    tag, blank = opened.groups()
    content = renderer.field_text(turn, "content")
    closed = any(name in content for name in _closing_tags(tag))
    if not closed and tag not in content:
        return None
    spans = [span for span in rendering.spans if _is_of(span, field_origin("content", turn))]
    if not closed or not spans or answer.reasoning or len(answer.parts) > 1:
        raise _NoServedForm
    if tag in content:
        before, content = content[: content.index(tag)], content[content.index(tag) + len(tag) :].removeprefix(blank)
        if before.strip():
            raise _NoServedForm
    origin = replace(field_origin("content", turn), generation=spans[0].origin.generation)
    rest = _closed_by_template(Rendering.piece(content, origin), tag)
    return prompt.followed_by(rest).followed_by(rendering.tail(spans[-1].end))


def _closed_by_template(answer: Rendering, tag: str) -> Rendering:
    """The answer with the text that closes its thought as a literal: the model gives it as a control token."""
    start, name = min((answer.text.index(name), name) for name in _closing_tags(tag) if name in answer.text)
    generated = any(span.origin.generation for span in answer.spans[:1])
    closing = Rendering.piece(name, replace(TEMPLATE, generation=generated))
    return answer.cut(start).followed_by(closing).followed_by(answer.tail(start + len(name)))


def _around_empty_thought(renderer: ExampleRenderer, messages: Messages, prompt: Rendering) -> Rendering | None:
    """The answer with the literals of a thought, where the template prints them behind the prompt."""
    *before, answer = messages
    if answer.reasoning:
        return None
    try:
        text = renderer.render((*before, replace(answer, reasoning=_LETTER)), False)
    except (RecordError, TemplateError):
        return None
    rendering = Rendering.of(text)
    thought = field_origin("reasoning", len(before))
    spans = [span for span in rendering.spans if _is_of(span, thought)]
    if len(spans) != 1 or not rendering.text.startswith(prompt.text) or spans[0].start < len(prompt.text):
        return None
    return _if_whole(renderer, rendering.cut(spans[0].start).followed_by(rendering.tail(spans[0].end)), messages)


def _behind_begun_thought(
    renderer: ExampleRenderer, messages: Messages, rendering: Rendering, prompt: Rendering
) -> Rendering | None:
    """The answer behind a thought that the prompt begins in words, where the template prints thoughts in their place.

    What stands behind such a thought has to close it: a text other than blank space.
    """
    *before, answer = messages
    if not answer.reasoning:
        try:
            rendering = Rendering.of(renderer.render((*before, replace(answer, reasoning=_LETTER)), False))
        except (RecordError, TemplateError):
            return None
    spans = [span for span in rendering.spans if _is_of(span, field_origin("reasoning", len(before)))]
    if len(spans) != 1 or not prompt.text.startswith(rendering.text[: spans[0].start]):
        return None
    start, end = spans[0].start, spans[0].end
    begun = prompt.text[start:]
    if not begun.strip() or _TAG.search(begun) or not rendering.literal_from(end).strip():
        return None
    if not answer.reasoning and answer.weight and renderer.empty_thought != "keep":
        raise _refused_thought(len(before), renderer.empty_thought, begun)
    return _if_whole(renderer, prompt.followed_by(rendering.tail(start if answer.reasoning else end)), messages)


def _is_of(span: Span, origin: Origin) -> bool:
    return span.origin.message == origin.message and span.origin.field == origin.field


def _if_whole(renderer: ExampleRenderer, rendering: Rendering, messages: Messages) -> Rendering | None:
    """The rendering if it shows all of the last message's content but blank space at its ends."""
    turn, answer = len(messages) - 1, messages[-1]
    spans = [span for span in rendering.spans if _is_of(span, field_origin("content", turn))]
    printed = [rendering.text[span.start : span.end] for span in spans]
    if answer.parts:
        texts = [str(part.get("text", "")).strip() for part in answer.parts]
        return rendering if sum(map(len, printed)) >= sum(map(len, texts)) else None
    return rendering if renderer.covers(printed, renderer.field_text(turn, "content")) else None


def _behind_prompt(
    renderer: ExampleRenderer, messages: Messages, rendering: Rendering, prompt: Rendering
) -> Rendering | None:
    """The answer's own characters behind the prompt, and behind its thought if the prompt opens one."""
    turn = len(messages) - 1
    own_range = renderer.plain_own_range(messages, rendering)
    if own_range is not None and messages[-1].tool_calls and not messages[-1].content:
        # Where the header ends and the calls begin, a letter in their place shows.
        with_letter = Rendering.of(
            renderer.render(with_one_letter((*messages[:-1], replace(messages[-1], tool_calls=()))), False)
        )
        start = (with_letter.own_range(turn) or own_range)[0]
        if rendering.text.startswith(with_letter.text[:start]):
            own_range = (start, max(start, own_range[1]))
    if own_range is None:
        return None
    (before, header), (fed_before, fed) = _header(rendering.cut(own_range[0]), turn), _header(prompt, turn)
    if before != fed_before:
        return None
    instead, opening = _differing_ends(header, fed)
    thought = _Thought.of(opening, renderer.mentions)
    if thought is None:
        return None
    if thought.beside.strip() and not _HEADER.fullmatch(thought.beside):
        return None  # a question about the answer, or its beginning
    start = own_range[0]
    if instead.isspace() and not fed[-1:].isspace() and not thought.closing:
        start -= len(instead)  # between a header and the answer
    elif instead.strip() and "".join(instead.split()) not in thought.empty:
        lead = instead.lstrip()
        if not opening.strip():  # all that follows the prompt's header opens the answer, such as the name of a channel
            lead = instead[len(opening) :] if instead.startswith(opening) else lead
        elif _starts_with_calls(rendering, turn):  # what opens them
            if (found := _empty_thought(lead)) and not found[0]:
                lead = lead[found[1] :]
        elif not (thought.is_closed and _TAG.fullmatch(lead.rstrip())):  # a tag that opens the text of the answer
            return None
        start -= len(lead)
    own_thought = field_origin("reasoning", turn)
    if opening.strip() and any(_is_of(span, own_thought) for span in rendering.spans):
        return None  # a thought of its own, which the prompt does not lead to
    return _with_thought(renderer, messages, rendering, prompt, thought.closing, start)


def _in_empty_thought(
    renderer: ExampleRenderer, messages: Messages, rendering: Rendering, prompt_length: int
) -> Rendering | None:
    """The row's thought in the empty one that the template writes though the answer has one.

    A template may print thoughts beside tool calls alone. The blank space of the empty thought is parted around it.
    """
    turn = len(messages) - 1
    own_thought = field_origin("reasoning", turn)
    if not messages[-1].reasoning or any(_is_of(span, own_thought) for span in rendering.spans):
        return None
    opened = _OPENED.search(_header(rendering.cut(prompt_length), turn)[1])
    fed, lead = opened[0] if opened else "", rendering.literal_from(prompt_length)
    for tag in _THOUGHT_TAG.finditer(fed + lead):
        blank = re.compile(r"\s*").match(fed + lead, tag.end())
        if blank is None or not any((fed + lead).startswith(name, blank.end()) for name in _closing_tags(tag[0])):
            continue
        start = prompt_length + max(0, tag.end() + len(blank[0]) // 2 - len(fed))
        generated = any(span.origin.generation for span in rendering.tail(start).spans[:1])
        thought = renderer.field_text(turn, "reasoning")
        before = rendering.cut(start).followed_by(Rendering.piece(thought, replace(own_thought, generation=generated)))
        return before.followed_by(rendering.tail(start))
    return None


def _behind_open_thought(
    renderer: ExampleRenderer, messages: Messages, rendering: Rendering, prompt_length: int
) -> Rendering | None:
    """The answer of a text that starts with the prompt but leaves open the thought that the prompt opens.

    A template may print the last answer so, as the beginning of a thought that a server goes on with.
    """
    turn = len(messages) - 1
    opened = _OPENED.search(_header(rendering.cut(prompt_length), turn)[1])
    if opened is None or not _THOUGHT_TAG.fullmatch(opened[1]) or rendering.literal_from(prompt_length).strip():
        return None
    if any(_is_of(span, field_origin("reasoning", turn)) for span in rendering.spans):
        return None
    prompt = rendering.cut(prompt_length)
    if inline := _with_inline_thought(renderer, messages, rendering, prompt):
        return inline
    thought = _Thought.of(opened[0], renderer.mentions)
    start = prompt_length + len(rendering.literal_from(prompt_length))
    if thought is None or rendering.own_range(turn) is None:
        return None
    return _with_thought(renderer, messages, rendering, prompt, thought.closing, start)


def _with_thought(
    renderer: ExampleRenderer, messages: Messages, rendering: Rendering, prompt: Rendering, closing: str, start: int
) -> Rendering | None:
    """The prompt, the thought that it leads to and what closes it, and the rendering from `start` on.

    The thought is the row's, unless the rendering shows it already or the prompt leads to none.
    """
    turn, answer = len(messages) - 1, rendering.tail(start)
    generated = any(span.origin.generation for span in answer.spans[:1])
    own_thought = field_origin("reasoning", turn)
    is_printed = any(_is_of(span, own_thought) for span in rendering.spans)
    # Where the prompt has no place for the thought, the text lacks it, and is refused for that.
    if closing and messages[-1].reasoning and not is_printed:
        thought = renderer.field_text(turn, "reasoning")
        prompt = prompt.followed_by(Rendering.piece(thought, replace(own_thought, generation=generated)))
    closed = prompt.followed_by(Rendering.piece(closing, replace(TEMPLATE, generation=generated)))
    return _if_whole(renderer, closed.followed_by(answer), messages)


def _starts_with_calls(rendering: Rendering, turn: int) -> bool:
    """Whether the first of a message's own characters are those of its tool calls."""
    own = (span.origin for span in rendering.spans if span.origin.message == turn and not span.origin.in_header)
    return next((origin.field == "tool_calls" for origin in own), False)


def _header(rendering: Rendering, turn: int) -> tuple[Origin | None, str]:
    """The end of a text that is no data but the header of this turn, and the origin of the data before it."""
    for span in reversed(rendering.spans):
        origin = span.origin
        if not origin.is_template and not (origin.message == turn and origin.in_header):
            return origin, rendering.text[span.end :]
    return None, rendering.text


def _differing_ends(one: str, other: str) -> tuple[str, str]:
    """The ends of two texts behind what they begin with alike, but for blank space.

    Tags are compared as a whole. A last common one that the first text closes, and not the second, is part of the ends.
    """
    ones, others = ([*_WORD.finditer(text)] for text in (one, other))
    same = len([*takewhile(lambda pair: pair[0][0] == pair[1][0], zip(ones, others, strict=False))])
    if same and len(ones) > same == len(others) and ones[same][0] in _closing_tags(ones[same - 1][0]):
        same -= 1
    one_end, other_end = (words[same - 1].end() if same else 0 for words in (ones, others))
    one, other = one[one_end:], other[other_end:]
    ones, others = ([*_WORD.finditer(text)] for text in (one, other))
    # The second text may have more tags before the same header, such as one that ends the turn before it.
    for count in range(min(len(ones), len(others) - 1), 0, -1):
        more, header = others[:-count], others[-count:]
        is_same_header = [word[0] for word in ones[:count]] == [word[0] for word in header]
        only_tags = all(_TAG.fullmatch(word[0]) for word in more)
        if is_same_header and only_tags and not _THOUGHT_TAG.fullmatch(header[-1][0]):
            return one[ones[count - 1].end() :], other[header[-1].end() :]
    # The first text may begin earlier, with a tag.
    for start in range(1, len(ones)):
        if not all(_TAG.fullmatch(word[0]) for word in (*ones[:start], ones[start])):
            break
        if [word[0] for word in ones[start:]] == [word[0] for word in others[: len(ones) - start]]:
            return "", other[others[len(ones) - start - 1].end() :]
    return one, other


class _Thought(NamedTuple):
    """A thought that a prompt may leave open."""

    closing: str = ""
    """What ends it; empty if the prompt leaves none open."""
    is_closed: bool = False
    """Whether the prompt itself closes it."""
    empty: tuple[str, ...] = ()
    """How the template may write an empty thought."""
    beside: str = ""
    """What the prompt has before and behind the thought."""

    @classmethod
    def of(cls, opening: str, mentions: Collection[str]) -> _Thought | None:
        """The thought that a text opens; None where it ends in a tag that opens none.

        `mentions` are the texts in the template's source.
        """
        tags = list(_TAG.finditer(opening))
        if not tags:
            return cls(beside=opening)
        first, last = tags[0], tags[-1]
        names = list(_closing_tags(first[0]))
        empty = tuple(text for name in names for text in (name, first[0] + name))
        if closing := next((tag for tag in tags[1:] if tag[0] in names), None):
            return cls(
                is_closed=True, empty=empty, beside=_TAG.sub(" ", opening[: first.start()] + opening[closing.end() :])
            )
        if last[0][1:].startswith("/"):
            return cls(is_closed=True, beside=_TAG.sub(" ", opening))
        names = list(_closing_tags(last[0]))
        name = next((name for name in names if any(name in text for text in mentions)), None)
        if name is None and _THOUGHT_TAG.fullmatch(last[0]):
            name = names[0]
        if name is None:
            return None
        blank = opening[last.end() :]
        own_line = "\n" in blank and not blank.strip()
        return cls(f"\n{name}\n\n" if own_line else name, empty=empty, beside=_TAG.sub(" ", opening))


def _closing_tags(tag: str) -> Iterator[str]:
    """The texts that may close a tag, that of XML first."""
    yield f"{tag[0]}/{tag[1:]}"
    for start, end in (("start", "end"), ("START", "END"), ("begin", "end"), ("BEGIN", "END")):
        if start in tag:
            yield tag.replace(start, end)
    if tag.startswith("<|"):
        yield f"<|/{tag[2:]}"
        yield f"<{tag[2:].removesuffix('>').removesuffix('|')}|>"
