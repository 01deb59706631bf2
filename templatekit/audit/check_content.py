"""Rules about what the rows say: nothing, a placeholder, or what another row says already."""

from __future__ import annotations

import re
from collections.abc import Iterator

from templatekit.audit.values import AuditedSample, Hit, Row, Setup
from templatekit.errors import NOTHING_TRAINED, LeftOut, shorten
from templatekit.types import Message

_LONGEST = 40
"""Longer texts are no placeholders."""
_PLACEHOLDER = re.compile(
    r"""\W*(?: no[ _-]?(?:input|output|context|response|answer|text|content|data)
             (?:\ (?:is\ )?(?:needed|required|necessary|given|provided|available))?
         | n\s*/\s*a | not\ (?:applicable|available) | null | nan | nil | undefined
         | todo | tbd | to\ be\ (?:done|determined|added)
         | (?:your|insert|enter|add)\ (?:input|output|context|response|answer|text)(?:\ here)?
         | (?:input|output|context|response|answer|text)\ (?:goes\ )?here )\W*
       | [<(\[{]*none[>)\]}]*
       | [-–—_.…?]+""",
    re.IGNORECASE | re.VERBOSE,
)


def is_placeholder(text: str) -> bool:
    """Whether a text stands for having none, such as `<noinput>` or `n/a`."""
    return len(text) <= _LONGEST and _PLACEHOLDER.fullmatch(text.strip()) is not None


def empty_answer(row: Row, setup: Setup) -> Iterator[Hit]:
    """A trained assistant message without text and without tool calls."""
    for sample in row.samples:
        for target in sample.rendered.target_spans:
            message = sample.example.messages[target.message]
            if message.weight and not _says_something(message):
                yield Hit(sample=sample, start=target.start, end=target.end)


def empty_prompt(row: Row, setup: Setup) -> Iterator[Hit]:
    """A user message without text."""
    for sample in row.samples:
        for index, message in enumerate(sample.example.messages):
            if message.role == "user" and not _says_something(message):
                place = _place(sample, index, "role")
                yield Hit(what="" if not index else "in a later turn", sample=sample, start=place[0], end=place[1])


def _says_something(message: Message) -> bool:
    return bool(message.content.strip() or message.context.strip() or message.tool_calls)


def placeholder(row: Row, setup: Setup) -> Iterator[Hit]:
    """A text that stands for having none."""
    for sample in row.samples:
        for index, message in enumerate(sample.example.messages):
            for field in ("content", "context"):
                text = getattr(message, field)
                if text and is_placeholder(text):
                    start, end = _place(sample, index, field)
                    what = f"{shorten(text.strip())} as {message.role} {field}"
                    yield Hit(what=what, sample=sample, start=start, end=end)


def _place(sample: AuditedSample, message: int, field: str) -> tuple[int, int]:
    spans = [span for span in sample.rendered.spans if span.origin.message == message and span.origin.field == field]
    return (spans[0].start, spans[-1].end) if spans else (0, 0)


def duplicate_rows(row: Row, setup: Setup) -> Iterator[Hit]:
    """A text that an earlier row has."""
    for sample in row.samples:
        if sample.same_text is not None and sample.same_text != row.number:
            yield Hit(detail=f"the same text as row {sample.same_text}", sample=sample)


def same_prompt(row: Row, setup: Setup) -> Iterator[Hit]:
    """A prompt that an earlier row answers otherwise."""
    for sample in row.samples:
        if sample.same_prompt is not None and sample.same_prompt != row.number:
            for answer in sample.rendered.target_spans[-1:]:
                detail = f"row {sample.same_prompt} has another answer"
                yield Hit(detail=detail, sample=sample, start=answer.start, end=answer.end)


def shared_rows(row: Row, setup: Setup) -> Iterator[Hit]:
    """A text that another data set has."""
    for sample in row.samples:
        if (other := sample.shared_text) is not None:
            yield Hit(what=other.dataset, detail=f"the same text as row {other.row} there", sample=sample)


def nearly_shared_rows(row: Row, setup: Setup) -> Iterator[Hit]:
    """A text that another data set nearly has."""
    for sample in row.samples:
        if (other := sample.nearly_shared) is not None:
            detail = f"nearly the text of row {other.row} there (similarity {other.similarity:.2f})"
            yield Hit(what=other.dataset, detail=detail, sample=sample)


def shared_prompts(row: Row, setup: Setup) -> Iterator[Hit]:
    """A prompt that another data set answers otherwise."""
    for sample in row.samples:
        if (other := sample.shared_prompt) is not None:
            for answer in sample.rendered.target_spans[-1:]:
                detail = f"row {other.row} there has another answer"
                yield Hit(what=other.dataset, detail=detail, sample=sample, start=answer.start, end=answer.end)


def unusable(row: Row, setup: Setup) -> Iterator[Hit]:
    """A record that cannot be used."""
    if row.error is not None and row.error.reason != NOTHING_TRAINED and not isinstance(row.error, LeftOut):
        yield Hit(what=row.error.reason, detail=str(row.error))


def left_out(row: Row, setup: Setup) -> Iterator[Hit]:
    """A record that the options leave out."""
    if isinstance(row.error, LeftOut):
        yield Hit(what=row.error.reason, detail=str(row.error))


def unread_keys(row: Row, setup: Setup) -> Iterator[Hit]:
    """Keys of the record that the adapter does not read."""
    for key, value in row.unread.items():
        yield Hit(what=key, detail=f"{key}: {shorten(value)}")
