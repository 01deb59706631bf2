"""The exceptions and assertions of checks."""

from __future__ import annotations

from typing import Any

from templatekit.testing.checked_record import CheckedSample


class Violation(AssertionError):
    """The promise of a check is broken."""

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        found: object = None,
        sample: CheckedSample | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.found = found
        self.sample = sample
        self.hint = hint


def equal(found: object, expected: object, what: str, sample: CheckedSample | None = None) -> None:
    """Raise `Violation` if two values differ."""
    if found != expected:
        raise Violation(what, expected=expected, found=found, sample=sample)


def holds(condition: object, what: str, sample: CheckedSample | None = None, **more: Any) -> None:
    """Raise `Violation` if a condition is false."""
    if not condition:
        raise Violation(what, sample=sample, **more)
