"""Rules about the content of rows: empty texts, placeholders, duplicates, unusable records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from templatekit.audit.context import AuditContext
from templatekit.audit.rows import AuditedRow, field_ranges
from templatekit.audit.rule import Occurrence
from templatekit.errors import NOTHING_TRAINED, ExcludedRecord, shorten
from templatekit.types import Message

_MAX_PLACEHOLDER_LENGTH = 40
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
    """Whether a text only says that there is no text, such as `<noinput>` or `n/a`."""
    return len(text) <= _MAX_PLACEHOLDER_LENGTH and _PLACEHOLDER.fullmatch(text.strip()) is not None


def empty_answer(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A trained assistant message without text and without tool calls."""
    for sample in row.samples:
        for target in sample.rendered.target_spans:
            message = sample.example.messages[target.message]
            if message.weight and _is_empty(message):
                yield Occurrence(sample=sample, start=target.start, end=target.end)


def empty_prompt(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A user message without text."""
    for sample in row.samples:
        for index, message in enumerate(sample.example.messages):
            if message.role == "user" and _is_empty(message):
                start, end = field_ranges(sample).get((index, "role"), (0, 0))
                yield Occurrence(kind="in a later turn" if index else "", sample=sample, start=start, end=end)


def _is_empty(message: Message) -> bool:
    return not (message.content.strip() or message.context.strip() or message.tool_calls)


def placeholder(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that only says that there is no text."""
    for sample in row.samples:
        for index, message in enumerate(sample.example.messages):
            for field in ("content", "context"):
                text = getattr(message, field)
                if text and is_placeholder(text):
                    start, end = field_ranges(sample).get((index, field), (0, 0))
                    kind = f"{shorten(text.strip())} as {message.role} {field}"
                    yield Occurrence(kind=kind, sample=sample, start=start, end=end)


def duplicate_rows(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that equals the text of an earlier row."""
    for sample in row.samples:
        if sample.same_text is not None and sample.same_text != row.number:
            yield Occurrence(detail=f"the same text as row {sample.same_text}", sample=sample)


def same_prompt(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A prompt that has another answer in an earlier row."""
    for sample in row.samples:
        if sample.same_prompt is not None and sample.same_prompt != row.number:
            for answer in sample.rendered.target_spans[-1:]:
                detail = f"row {sample.same_prompt} has another answer"
                yield Occurrence(detail=detail, sample=sample, start=answer.start, end=answer.end)


def shared_rows(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that another data set contains."""
    for sample in row.samples:
        if (other := sample.shared_text) is not None:
            yield Occurrence(kind=other.dataset, detail=f"the same text as row {other.row} there", sample=sample)


def nearly_shared_rows(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that is similar to a text of another data set."""
    for sample in row.samples:
        if (other := sample.nearly_shared) is not None:
            detail = f"nearly the text of row {other.row} there (similarity {other.similarity:.2f})"
            yield Occurrence(kind=other.dataset, detail=detail, sample=sample)


def shared_prompts(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A prompt that has another answer in another data set."""
    for sample in row.samples:
        if (other := sample.shared_prompt) is not None:
            for answer in sample.rendered.target_spans[-1:]:
                detail = f"row {other.row} there has another answer"
                yield Occurrence(kind=other.dataset, detail=detail, sample=sample, start=answer.start, end=answer.end)


def unusable(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A record that cannot be used."""
    if row.error is not None and row.error.reason != NOTHING_TRAINED and not isinstance(row.error, ExcludedRecord):
        yield Occurrence(kind=row.error.reason, detail=str(row.error))


def excluded(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A record that the options exclude."""
    if isinstance(row.error, ExcludedRecord):
        yield Occurrence(kind=row.error.reason, detail=str(row.error))


def unread_keys(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """Keys of the record that the adapter does not read."""
    for key, value in row.unread.items():
        yield Occurrence(kind=key, detail=f"{key}: {shorten(value)}")
