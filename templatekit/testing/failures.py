"""A failure in words: the promise, the smallest record, what was expected and what came, and the ids."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from templatekit.testing.subject import CheckedSample, Subject

if TYPE_CHECKING:
    from templatekit.testing.check import Check, Violation

_AROUND, _IDS = 40, 12
"""Characters, and ids, that are shown before a difference; behind it four times as many."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A promise that was broken, and how to see it."""

    check: str
    properties: tuple[int, ...]
    promise: str
    subject: str
    tokenizer: str
    what: str
    record: Any
    """The smallest record found; None where the check generates none."""
    expected: Any
    found: Any
    tokens: tuple[str, ...] = ()
    """The ids of the sample with their texts and, behind a `*`, what is trained."""
    hint: str = ""

    @classmethod
    def of(cls, check: Check[Any], subject: Subject, trial: Any, violation: Violation) -> Failure:
        """What a violation says."""
        return cls(
            check=check.name,
            properties=check.properties,
            promise=check.promise,
            subject=subject.name,
            tokenizer=subject.tokenizer.name,
            what=violation.what,
            record=_plain(getattr(trial, "record", None)),
            expected=_plain(violation.expected),
            found=_plain(violation.found),
            tokens=tuple(_tokens(violation.sample)) if violation.sample else (),
            hint=violation.hint,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("tokenizer", "what", "record", "expected", "found", "tokens", "hint")
        return {name: getattr(self, name) for name in names}

    def lines(self) -> Iterator[str]:
        """In words, a few lines."""
        yield f"promise:  {self.promise}"
        yield f"broken:   {self.what}"
        if self.record is not None:
            yield f"record:   {_spelt(self.record)}"
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


def _plain(value: Any) -> Any:
    """A value that JSON can spell."""
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def _quoted(value: Any) -> str:
    """As JSON, with what cannot be seen, or would turn the line around, as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _spelt(record: Any, limit: int = 1_000) -> str:
    text = _quoted(record)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def _difference(expected: Any, found: Any) -> Iterator[str]:
    """Both sides, from a little before they part to a little behind; of lists of lists, those that differ."""
    at = 0
    if isinstance(expected, (str, list)) and type(expected) is type(found):
        pairs = enumerate(zip(expected, found, strict=False))
        at = next((index for index, (one, other) in pairs if one != other), min(len(expected), len(found)))
        if isinstance(expected, list) and at < min(len(expected), len(found)):
            one, other = expected[at], found[at]
            if type(one) is type(other) and isinstance(one, (str, list)):
                yield from _difference(one, other)
                return
    both = expected is not None and found is not None
    for name, value in (("expected", expected), ("found", found)):
        if value is not None:
            yield f"{name + ':':9} {_cut(value, at) if both else _spelt(value)}"
    if at:
        yield f"          they part at {'character' if isinstance(expected, str) else 'index'} {at}"


def _cut(value: Any, at: int) -> str:
    if not isinstance(value, (str, list)):
        return str(value)
    around = _AROUND if isinstance(value, str) else _IDS
    start, end = max(0, at - around), at + 4 * around
    return f"{'… ' if start else ''}{_quoted(value[start:end])}{' …' if end < len(value) else ''}"


def _tokens(sample: CheckedSample, limit: int = 60) -> Iterator[str]:
    """Each id with its text; `*` where it is trained."""
    tokenized, decode = sample.tokenized, sample.subject.tokenizer.decode
    for at, (id, weight) in enumerate(zip(tokenized.input_ids, tokenized.loss_weights, strict=True)):
        if at == limit:
            yield f"… ({len(tokenized)} ids)"
            return
        yield f"{id}{_quoted(decode([id]))}{'*' if weight else ''}"
