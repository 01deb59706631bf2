"""Describes a failure: the promise, the smallest failing record, the expected and the actual value, and the ids."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from templatekit.testing.checked_record import CheckedSample, Violation
from templatekit.testing.subject import Subject

_CHARACTERS_SHOWN, _IDS_SHOWN = 40, 12
"""Characters or ids that are shown before a difference; after it four times as many."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A broken promise, with all that is needed to reproduce and understand it."""

    check: Any
    """The `Check`, whose module imports this one."""
    subject: Subject
    violation: Violation
    record: Any = None
    """The smallest failing record that was found; None for checks without generated records."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON. `tokens` are the ids of the sample with their texts; a trained id ends with `*`."""
        sample = self.violation.sample
        return {
            "tokenizer": self.subject.tokenizer.name,
            "what": self.violation.what,
            "record": _json_value(self.record),
            "expected": _json_value(self.violation.expected),
            "found": _json_value(self.violation.found),
            "tokens": list(_described_ids(sample)) if sample else [],
            "hint": self.violation.hint,
        }

    def __str__(self) -> str:
        return "\n  ".join(self._lines())

    def _lines(self) -> Iterator[str]:
        facts = self.as_dict()
        noun = "property" if len(self.check.properties) == 1 else "properties"
        numbers = ", ".join(map(str, self.check.properties))
        yield f"{self.subject.name}, tokenizer {facts['tokenizer']}: {self.check.name} ({noun} {numbers})"
        yield f"promise:  {self.check.promise}"
        yield f"broken:   {facts['what']}"
        if facts["record"] is not None:
            yield f"record:   {_shortened_json(facts['record'])}"
        yield from _difference(facts["expected"], facts["found"])
        if facts["tokens"]:
            yield f"ids:      {' '.join(facts['tokens'])}"
        if facts["hint"]:
            yield f"hint:     {facts['hint']}"


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
