"""A named check: a property's promise in one sentence, and the function that holds a subject to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hypothesis import strategies as st

from templatekit.testing.subject import CheckedSample, Subject

T = TypeVar("T")
Given = Callable[[Subject], st.SearchStrategy[T]]
"""Makes the strategy for what a check is tried on. Checks with one of these are tried on the same inputs."""
Unless = Callable[[Subject], str | None]
"""Says why a check says nothing about a subject; None where it does."""


class Violation(AssertionError):
    """A property that does not hold."""

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
    """Raises `Violation` where two values differ."""
    if found != expected:
        raise Violation(what, expected=expected, found=found, sample=sample)


def holds(condition: object, what: str, sample: CheckedSample | None = None, **more: Any) -> None:
    """Raises `Violation` where a condition is false."""
    if not condition:
        raise Violation(what, sample=sample, **more)


@dataclass(frozen=True, kw_only=True, eq=False)
class Check(Generic[T]):
    """One check. Calling it with a subject tries it on generated inputs; it raises `AssertionError` where it fails."""

    name: str
    properties: tuple[int, ...]
    """The numbers of the properties that it checks."""
    promise: str
    given: Given[T]
    function: Callable[[T], str | None]
    """Raises `Violation` where the promise is broken. Says why an input says nothing, and None where it was tried."""
    unless: tuple[Unless, ...] = ()

    def __repr__(self) -> str:
        return self.name

    def __call__(self, subject: Subject, *, examples: int | None = None, seed: int = 0) -> None:
        """Tries the check on `examples` inputs (hypothesis' profile tells how many where none are named)."""
        from templatekit.testing.runner import enforce

        enforce(self, subject, examples=examples, seed=seed)

    def on(self, trial: T) -> None:
        """Tries the check on one input; raises `Violation` where the promise is broken."""
        from templatekit.testing.runner import attempt

        attempt(self, trial)

    def not_applicable(self, subject: Subject) -> str | None:
        """Why the check says nothing about a subject; None where it does."""
        return next((why for unless in self.unless if (why := unless(subject))), None)


def check(
    *properties: int, given: Given[T], unless: Sequence[Unless] = ()
) -> Callable[[Callable[[T], str | None]], Check[T]]:
    """Makes a check of a function: its name is the check's, its docstring the promise."""

    def made(function: Callable[[T], str | None]) -> Check[T]:
        return Check(
            name=function.__name__,
            properties=properties,
            promise=" ".join((function.__doc__ or "").split()),
            given=given,
            function=function,
            unless=tuple(unless),
        )

    return made


# Why a check says nothing about a subject.


def no_adapter(subject: Subject) -> str | None:
    """For checks of adapters."""
    return None if subject.checked_adapter else "no adapter is checked"


def no_template(subject: Subject) -> str | None:
    """For checks that the adapter has no part in."""
    return None if subject.checked_template else "no template is checked"


def does_not_write(subject: Subject) -> str | None:
    """For checks of `to_record`."""
    from templatekit.hooks.contracts import Adapter

    writes = type(subject.adapter).to_record is not Adapter.to_record
    return None if writes else "the adapter does not write records: it has no to_record"


def one_turn(subject: Subject) -> str | None:
    """For checks of conversations."""
    return None if subject.scope.turns > 1 else "one turn is all that is taken"
