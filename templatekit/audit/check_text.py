"""Rules about text: what acts as control elsewhere, what the template changes, what is no clean text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from templatekit.audit.regions import data_regions, field_name, origin_at
from templatekit.audit.values import AuditedSample, Hit, Row, Setup
from templatekit.errors import shorten
from templatekit.tokens.tokenizer import Tokenizer

_FIELDS = ("content", "context", "reasoning")
"""A message's texts."""


def control_text(row: Row, setup: Setup) -> Iterator[Hit]:
    """Control strings of the tokenizer in data, which are encoded as plain text."""
    return (hit for hit, acts in _control(row, setup) if not acts)


def control_that_acts(row: Row, setup: Setup) -> Iterator[Hit]:
    """Control strings that are encoded as such: those not flagged special in an assistant's text, or where data may act
    all of them."""
    return (hit for hit, acts in _control(row, setup) if acts)


def _control(row: Row, setup: Setup) -> Iterator[tuple[Hit, bool]]:
    if setup.tokenizer is None or (pattern := _control_pattern(setup.tokenizer)) is None:
        return
    everywhere = setup.options.control_tokens == "everywhere"
    for sample in row.samples:
        rendered = sample.rendered
        for region in data_regions(rendered):
            for match in pattern.finditer(rendered.text, region.start, region.end):
                origin = origin_at(rendered, match.start())
                own = (
                    origin.message is not None
                    and rendered.roles[origin.message] == "assistant"
                    and not origin.in_header
                )
                acts = everywhere or (own and not setup.tokenizer.control_tokens[match[0]].special)
                what = f"{match[0]} in {field_name(rendered, origin)}"
                yield Hit(what=what, sample=sample, start=match.start(), end=match.end()), acts


@lru_cache(maxsize=4)
def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    texts = sorted(tokenizer.control_tokens, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def template_markers(row: Row, setup: Setup) -> Iterator[Hit]:
    """Texts in data that the template itself writes around fields."""
    for sample in row.samples:
        rendered = sample.rendered
        for region in data_regions(rendered, headers=False):
            for marker in setup.markers:
                start = _find_marker(rendered.text, marker.text, region.start, region.end, leads=marker.leads)
                if start >= 0:
                    what = f"{marker.text} in {field_name(rendered, origin_at(rendered, start))}"
                    yield Hit(what=what, sample=sample, start=start, end=start + len(marker.text))


def _find_marker(text: str, marker: str, start: int, end: int, *, leads: bool) -> int:
    """Where the marker first stands; -1 for nowhere."""
    found = text.find(marker, start, end)
    while leads and found >= 0 and not _begins_line(text, start, found):
        found = text.find(marker, found + 1, end)
    return found


def _begins_line(text: str, start: int, position: int) -> bool:
    """Whether only spaces lie between a position and the line's or the region's beginning."""
    while position > start and text[position - 1] in " \t":
        position -= 1
    return position == start or text[position - 1] == "\n"


def text_trimmed(row: Row, setup: Setup) -> Iterator[Hit]:
    """The template drops whitespace at a text's edges."""
    return (hit for hit, trimmed in _altered(row) if trimmed)


def text_changed(row: Row, setup: Setup) -> Iterator[Hit]:
    """The template prints a text otherwise than by dropping whitespace at its edges, or not at all."""
    return (hit for hit, trimmed in _altered(row) if not trimmed)


def _altered(row: Row) -> Iterator[tuple[Hit, bool]]:
    for sample in row.samples:
        printed = _printed(sample)
        computed = any(span.origin.kind == "computed" for span in sample.rendered.spans)
        trained = {target.message for target in sample.rendered.target_spans}
        for index, message in enumerate(sample.example.messages):
            if message.role == "assistant" and sample.rendered.samples > 1 and index not in trained:
                continue  # another sample has this turn as it is trained
            for field in _FIELDS:
                text = getattr(message, field)
                if not text.strip():
                    continue
                start, end = printed.get((index, field), (0, 0))
                found = sample.rendered.text[start:end]
                # Text made from several fields at once has no place of its own; printed twice, it has several.
                if found == text or (computed and text in sample.rendered.text) or text in found:
                    continue
                trimmed = found.strip() == text.strip()
                what = f"{message.role} {field}"
                detail = _difference(text, found)
                yield Hit(what=what, detail=detail, sample=sample, start=start, end=end), trimmed


def _printed(sample: AuditedSample) -> dict[tuple[int, str], tuple[int, int]]:
    """From where to where each field's characters stand."""
    printed: dict[tuple[int, str], tuple[int, int]] = {}
    for span in sample.rendered.spans:
        origin = span.origin
        if origin.kind == "field" and origin.message is not None and origin.field is not None:
            start = printed.get((origin.message, origin.field), (span.start, 0))[0]
            printed[origin.message, origin.field] = (start, span.end)
    return printed


def _difference(text: str, found: str) -> str:
    if not found:
        return f"left out: {shorten(text)}"
    left, right = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    if found.strip() == text.strip():
        lost = [f"{shorten(edge)} at the {side}" for edge, side in ((left, "start"), (right, "end")) if edge]
        return f"in the data there is {' and '.join(lost)}"
    return f"in the data: {shorten(text, 100)}"


def text_normalized(row: Row, setup: Setup) -> Iterator[Hit]:
    """The tokenizer does not give a text back as it was."""
    for sample in row.samples:
        for lossy in sample.lossy:
            start, end = _printed(sample).get((lossy.message, lossy.field), (0, 0))
            same = next((i for i, (a, b) in enumerate(zip(lossy.text, lossy.decoded, strict=False)) if a != b), 0)
            place = sample.rendered.text.find(lossy.text[same : same + 1], start + same, end)
            before, after = _code_points(lossy.text[same : same + 3]), _code_points(lossy.decoded[same : same + 3])
            yield Hit(
                what=f"{sample.example.messages[lossy.message].role} {lossy.field}",
                detail=f"{before} comes back as {after}",
                sample=sample,
                start=max(place, start),
                end=max(place, start) + 1,
            )


def _code_points(text: str) -> str:
    return f"{text!r} ({' '.join(f'U+{ord(character):04X}' for character in text)})"


_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufeff\ufffe\uffff]|\r(?!\n)|[ÂÃ][\xa0-\xbf]|â€[\x98-\x9f™œžŸ“”˜]"
)


def encoding_oddities(row: Row, setup: Setup) -> Iterator[Hit]:
    """Characters that clean text does not hold."""
    for sample in row.samples:
        rendered = sample.rendered
        if rendered.text.isascii() and rendered.text.replace("\n", "").replace("\t", "").isprintable():
            continue
        for region in data_regions(rendered):
            for match in _ODD.finditer(rendered.text, region.start, region.end):
                yield Hit(what=_oddity(match[0]), sample=sample, start=match.start(), end=match.end())


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
