"""Describes a failure: the promise, the smallest failing record, the expected and the actual value, and the ids."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from templatekit.testing.checked_record import CheckedSample
from templatekit.testing.subject import Subject
from templatekit.testing.violation import Violation

_CHARACTERS_SHOWN, _IDS_SHOWN = 40, 12
"""Characters or ids that are shown before a difference; after it four times as many."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A broken promise, with all that is needed to reproduce and understand it."""

    check: str
    properties: tuple[int, ...]
    promise: str
    subject: str
    tokenizer: str
    what: str
    record: Any
    """The smallest failing record that was found; None for checks without generated records."""
    expected: Any
    found: Any
    tokens: tuple[str, ...] = ()
    """The ids of the sample with their texts; a trained id ends with `*`."""
    hint: str = ""

    @classmethod
    def of(
        cls,
        violation: Violation,
        *,
        check: str,
        properties: tuple[int, ...],
        promise: str,
        subject: Subject,
        record: Any,
    ) -> Failure:
        """Describe a violation."""
        return cls(
            check=check,
            properties=properties,
            promise=promise,
            subject=subject.name,
            tokenizer=subject.tokenizer.name,
            what=violation.what,
            record=_json_value(record),
            expected=_json_value(violation.expected),
            found=_json_value(violation.found),
            tokens=tuple(_described_ids(violation.sample)) if violation.sample else (),
            hint=violation.hint,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("tokenizer", "what", "record", "expected", "found", "tokens", "hint")
        return {name: getattr(self, name) for name in names}

    def lines(self) -> Iterator[str]:
        """The failure in a few lines of text."""
        yield f"promise:  {self.promise}"
        yield f"broken:   {self.what}"
        if self.record is not None:
            yield f"record:   {_shortened_json(self.record)}"
        yield from _difference(self.expected, self.found)
        if self.tokens:
            yield f"ids:      {' '.join(self.tokens)}"
        if self.hint:
            yield f"hint:     {self.hint}"

    def __str__(self) -> str:
        head = f"{self.subject}, tokenizer {self.tokenizer}: {self.check} ({properties(self.properties)})"
        return "\n".join([head, *(f"  {line}" for line in self.lines())])


def properties(numbers: Sequence[int]) -> str:
    """`property 8`, `properties 14, 15`."""
    return f"{'property' if len(numbers) == 1 else 'properties'} {', '.join(map(str, numbers))}"


def _json_value(value: Any) -> Any:
    """The value in types that JSON has; anything else as its `repr`."""
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    return [_json_value(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def _printable_json(value: Any) -> str:
    """The value as JSON, with escapes for characters that are invisible or change the direction of text."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shortened_json(record: Any, limit: int = 1_000) -> str:
    text = _printable_json(record)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def _difference(expected: Any, found: Any) -> Iterator[str]:
    """Both values around their first difference; of nested lists the inner ones that differ."""
    position = 0
    if isinstance(expected, (str, list)) and type(expected) is type(found):
        pairs = enumerate(zip(expected, found, strict=False))
        position = next((index for index, (one, other) in pairs if one != other), min(len(expected), len(found)))
        if isinstance(expected, list) and position < min(len(expected), len(found)):
            one, other = expected[position], found[position]
            if type(one) is type(other) and isinstance(one, (str, list)):
                yield from _difference(one, other)
                return
    both = expected is not None and found is not None
    for name, value in (("expected", expected), ("found", found)):
        if value is not None:
            yield f"{name + ':':9} {_excerpt(value, position) if both else _shortened_json(value)}"
    if position:
        yield f"          they differ from {'character' if isinstance(expected, str) else 'index'} {position}"


def _excerpt(value: Any, position: int) -> str:
    if not isinstance(value, (str, list)):
        return str(value)
    around = _CHARACTERS_SHOWN if isinstance(value, str) else _IDS_SHOWN
    start, end = max(0, position - around), position + 4 * around
    return f"{'… ' if start else ''}{_printable_json(value[start:end])}{' …' if end < len(value) else ''}"


def _described_ids(sample: CheckedSample, limit: int = 60) -> Iterator[str]:
    """Each id with its text, and `*` if it is trained."""
    tokenized, decode = sample.tokenized, sample.subject.tokenizer.decode
    for index, (id, weight) in enumerate(zip(tokenized.input_ids, tokenized.loss_weights, strict=True)):
        if index == limit:
            yield f"… ({len(tokenized)} ids)"
            return
        yield f"{id}{_printable_json(decode([id]))}{'*' if weight else ''}"
