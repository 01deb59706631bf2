"""Rules about characters: control strings and template markers in data, changed texts, encoding errors."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from templatekit.audit.context import AuditContext
from templatekit.audit.rows import TEXT_FIELDS, AuditedRow, field_ranges
from templatekit.audit.rule import Occurrence
from templatekit.errors import shorten
from templatekit.tokens.tokenizer import Tokenizer
from templatekit.types import Origin, RenderedText


def _data_ranges(rendered: RenderedText, *, headers: bool = True) -> Iterator[tuple[int, int]]:
    """Start and end of each longest text from data, in order. Without `headers`, roles and names are template text."""
    start = end = 0
    for span in rendered.spans:
        if span.origin.is_template or (span.origin.in_header and not headers):
            if end > start:
                yield start, end
            start = end = span.end
        else:
            end = span.end
    if end > start:
        yield start, end


def _origin_at(rendered: RenderedText, position: int) -> Origin:
    """The origin of a character."""
    return next(span.origin for span in rendered.spans if position < span.end)


def _field_name(rendered: RenderedText, origin: Origin) -> str:
    """The name of a field, the same in every row: `user content`, `tools`."""
    if origin.message is None:
        return origin.field or "computed text"
    return f"{rendered.roles[origin.message]} {origin.field}"


def control_text(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """Control strings of the tokenizer in data that are encoded as plain text."""
    return (found for found, acts in _control_strings(row, context) if not acts)


def control_that_acts(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """Control strings in data that are encoded as control tokens.

    In an assistant's text these are the control strings that are not flagged special; with
    `control_tokens="everywhere"` all control strings are.
    """
    return (found for found, acts in _control_strings(row, context) if acts)


def _control_strings(row: AuditedRow, context: AuditContext) -> Iterator[tuple[Occurrence, bool]]:
    """Every control string in data, and whether it is encoded as a control token."""
    if context.tokenizer is None or (pattern := _control_pattern(context.tokenizer)) is None:
        return
    everywhere = context.options.control_tokens == "everywhere"
    for sample in row.samples:
        rendered = sample.rendered
        for start, end in _data_ranges(rendered):
            for match in pattern.finditer(rendered.text, start, end):
                origin = _origin_at(rendered, match.start())
                in_answer = (
                    origin.message is not None
                    and rendered.roles[origin.message] == "assistant"
                    and not origin.in_header
                )
                acts = everywhere or (in_answer and not context.tokenizer.control_tokens[match[0]].special)
                kind = f"{match[0]} in {_field_name(rendered, origin)}"
                yield Occurrence(kind=kind, sample=sample, start=match.start(), end=match.end()), acts


@lru_cache(maxsize=4)
def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    texts = sorted(tokenizer.control_tokens, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def template_markers(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """Texts in data that the template also writes around fields."""
    for sample in row.samples:
        rendered = sample.rendered
        for start, end in _data_ranges(rendered, headers=False):
            for marker in context.markers:
                found = _find_marker(rendered.text, marker.text, start, end, line_start=marker.line_start)
                if found >= 0:
                    kind = f"{marker.text} in {_field_name(rendered, _origin_at(rendered, found))}"
                    yield Occurrence(kind=kind, sample=sample, start=found, end=found + len(marker.text))


def _find_marker(text: str, marker: str, start: int, end: int, *, line_start: bool) -> int:
    """The first position of the marker, at the start of a line or of the data where asked; -1 if there is none."""
    found = text.find(marker, start, end)
    if line_start and found >= 0:
        match = re.search(rf"^[ \t]*{re.escape(marker)}", text[start:end], re.MULTILINE)
        found = start + match.end() - len(marker) if match else -1
    return found


def text_trimmed(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that the template prints without the whitespace at its edges."""
    return (found for found, trimmed in _changed_texts(row) if trimmed)


def text_changed(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that the template changes in another way, or does not print."""
    return (found for found, trimmed in _changed_texts(row) if not trimmed)


def _changed_texts(row: AuditedRow) -> Iterator[tuple[Occurrence, bool]]:
    """Every text that is printed differently from the data, and whether only its edges were trimmed."""
    for sample in row.samples:
        ranges = field_ranges(sample)
        computed = any(span.origin.kind == "computed" for span in sample.rendered.spans)
        trained = {target.message for target in sample.rendered.target_spans}
        for index, message in enumerate(sample.example.messages):
            if message.role == "assistant" and sample.rendered.samples > 1 and index not in trained:
                continue  # another sample trains this turn
            for field in TEXT_FIELDS:
                text = getattr(message, field)
                if not text.strip():
                    continue
                start, end = ranges.get((index, field), (0, 0))
                printed = sample.rendered.text[start:end]
                # Text computed from several fields has no position of its own; text printed twice has several.
                if printed == text or (computed and text in sample.rendered.text) or text in printed:
                    continue
                trimmed = printed.strip() == text.strip()
                kind, detail = f"{message.role} {field}", _difference(text, printed)
                yield Occurrence(kind=kind, detail=detail, sample=sample, start=start, end=end), trimmed


def _difference(text: str, printed: str) -> str:
    if not printed:
        return f"left out: {shorten(text)}"
    left, right = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    if printed.strip() == text.strip():
        lost = [f"{shorten(edge)} at the {side}" for edge, side in ((left, "start"), (right, "end")) if edge]
        return f"in the data there is {' and '.join(lost)}"
    return f"in the data: {shorten(text, 100)}"


def text_normalized(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """A text that encoding and decoding changes."""
    for sample in row.samples:
        for difference in sample.round_trip_differences:
            text, decoded = difference.text, difference.decoded
            start, end = field_ranges(sample).get((difference.message, difference.field), (0, 0))
            same = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), 0)
            position = max(start, sample.rendered.text.find(text[same : same + 1], start + same, end))
            before, after = _code_points(text[same : same + 3]), _code_points(decoded[same : same + 3])
            kind = f"{sample.example.messages[difference.message].role} {difference.field}"
            detail = f"{before} comes back as {after}"
            yield Occurrence(kind=kind, detail=detail, sample=sample, start=position, end=position + 1)


def _code_points(text: str) -> str:
    return f"{text!r} ({' '.join(f'U+{ord(character):04X}' for character in text)})"


_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufeff\ufffe\uffff]|\r(?!\n)|[ÂÃ][\xa0-\xbf]|â€[\x98-\x9f™œžŸ“”˜]"
)


def encoding_oddities(row: AuditedRow, context: AuditContext) -> Iterator[Occurrence]:
    """Characters that clean text does not contain: control characters, byte order marks, decoding errors."""
    for sample in row.samples:
        rendered = sample.rendered
        if rendered.text.isascii() and rendered.text.replace("\n", "").replace("\t", "").isprintable():
            continue
        for start, end in _data_ranges(rendered):
            for match in _ODD.finditer(rendered.text, start, end):
                yield Occurrence(kind=_oddity(match[0]), sample=sample, start=match.start(), end=match.end())


@lru_cache(maxsize=256)
def _oddity(text: str) -> str:
    if len(text) > 1:
        return "UTF-8 read as Windows-1252"
    number = f"U+{ord(text):04X}"
    if text == "\r":
        return f"carriage return without a newline {number}"
    names = {"\ufffd": "replacement character", "\ufeff": "byte order mark"}
    if text in names:
        return f"{names[text]} {number}"
    return f"{'control character' if unicodedata.category(text) == 'Cc' else 'noncharacter'} {number}"
