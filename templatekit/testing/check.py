"""A check: a promise that every format keeps, and the function that tests whether a subject keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from unittest import SkipTest

from hypothesis import settings
from hypothesis import strategies as st

from templatekit.errors import NoEndMarkerError, PluginError, RecordError
from templatekit.formats.environment import PRINTED_NONE
from templatekit.testing.checked_record import NoSampleError, SkipInput, Violation
from templatekit.testing.failure import Failure
from templatekit.testing.search import search, smallest_failing_input
from templatekit.testing.subject import Subject

T = TypeVar("T")
InputStrategy = Callable[[Subject], st.SearchStrategy[T]]
"""Makes the strategy for the inputs of a check. Checks with the same input strategy are tried on the same inputs."""
Exemption = Callable[[Subject], str | None]
"""Returns why a check does not apply to a subject; None if it applies."""
Status = Literal["held", "failed", "expected", "unexpected", "not applicable", "not tried"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Check(Generic[T]):
    """One check. Calling it with a subject tries it on generated inputs, and raises `AssertionError` if it fails."""

    name: str
    properties: tuple[int, ...]
    """Numbers of the properties that it checks."""
    promise: str
    given: InputStrategy[T]
    function: Callable[[T], str | None]
    """Raises `Violation` if the promise is broken; returns why the input shows nothing, None if the promise holds."""
    unless: tuple[Exemption, ...] = ()

    def __repr__(self) -> str:
        return self.name

    def __call__(self, subject: Subject, *, examples: int | None = None, seed: int = 0) -> None:
        """Try the check on `examples` inputs (by default as many as the active profile of hypothesis says).

        Raises `AssertionError` that describes the failure if the check fails, and `unittest.SkipTest`, which pytest
        accepts too, if it does not apply to the subject.
        """
        outcome = untried_outcomes([self], subject).get(self)
        if outcome is None:
            count = settings().max_examples if examples is None else examples
            (outcome,) = try_together([self], subject, examples=count, seed=seed)
        if outcome.failure is not None:
            raise AssertionError(f"{outcome.failure}")
        if outcome.status in ("not applicable", "not tried"):
            raise SkipTest(f"{outcome.status}: {outcome.reason}")

    def attempt(self, value: T) -> str | None:
        """Try the check on one input; raises `Violation` if the promise is broken.

        Returns why the input shows nothing, or None if the promise holds. A record without samples fails only the one
        check whose promise is broken by that.
        """
        try:
            return self.function(value)
        except Violation:
            raise
        except SkipInput as skipped:
            return str(skipped)
        except NoSampleError as no_sample:
            error = no_sample.error
            if no_sample.declared or _broken_promise(error) != self.name:
                return "nothing came of the record"
            refused = isinstance(error, RecordError) and error.reason == "template_refused"
            raise Violation(
                "nothing came of a valid record",
                found=f"{type(error).__name__}: {error}",
                hint=_REFUSAL_HINT if refused else "",
            ) from error
        except Exception as error:  # a plugin may raise anything, and so may code that receives a plugin's wrong values
            if _broken_promise(error) not in (self.name, "valid_records_are_rendered"):
                return "nothing came of a record like it"  # another check reports this
            raise Violation(f"raised {type(error).__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one check on one subject."""

    check: Check[Any]
    subject: Subject
    status: Status
    """`expected`: the check failed, as was expected. `unexpected`: a failure was expected, but the check held."""
    tried: int = 0
    """Number of inputs that showed something."""
    reason: str = ""
    """Why the check was not applicable or not tried, or why it is expected to fail."""
    failure: Failure | None = None


def check(
    *properties: int, given: InputStrategy[T], unless: Sequence[Exemption] = ()
) -> Callable[[Callable[[T], str | None]], Check[T]]:
    """Decorator that turns a function into a check, with the function's name and with its docstring as the promise."""

    def make_check(function: Callable[[T], str | None]) -> Check[T]:
        return Check(
            name=function.__name__,
            properties=properties,
            promise=" ".join((function.__doc__ or "").split()),
            given=given,
            function=function,
            unless=tuple(unless),
        )

    return make_check


def untried_outcomes(checks: Iterable[Check[Any]], subject: Subject) -> dict[Check[Any], Outcome]:
    """The outcomes of the checks that cannot be tried: there are no records, or the check does not apply."""
    no_records = None
    try:
        _ = subject.shape
    except PluginError as error:
        no_records = Violation(str(error))
    outcomes = {}
    for each in checks:
        if no_records is None:
            if reason := next(filter(None, (exempt(subject) for exempt in each.unless)), None):
                outcomes[each] = Outcome(check=each, subject=subject, status="not applicable", reason=reason)
        elif each.name == "valid_records_are_rendered":
            failure = Failure(check=each, subject=subject, violation=no_records)
            outcomes[each] = Outcome(check=each, subject=subject, status="failed", tried=1, failure=failure)
        else:
            outcomes[each] = Outcome(check=each, subject=subject, status="not tried", reason="no record can be made")
    return outcomes


def try_together(
    checks: Sequence[Check[Any]],
    subject: Subject,
    *,
    examples: int,
    seed: int,
    expected_failures: Mapping[str, str] = {},
    deadline: float | None = None,
    shrink: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> Iterator[Outcome]:
    """Try checks with the same input strategy on the same inputs; `run_checks` describes the arguments."""
    strategy = checks[0].given(subject)
    results = search(
        {each: each.attempt for each in checks},
        strategy,
        examples=examples,
        seed=seed,
        deadline=deadline,
        progress=progress,
    )
    for each, result in results.items():
        failure = None
        if result.violation is not None:
            failing_input, violation = result.failing_input, result.violation
            if shrink:
                smallest = smallest_failing_input(each.attempt, strategy, examples=examples, seed=seed)
                failing_input, violation = smallest or (None, violation)  # None: it does not fail every time
            record = getattr(failing_input, "record", None)
            failure = Failure(check=each, subject=subject, violation=violation, record=record)
        reason = expected_failures.get(each.name, "")
        status: Status
        if failure is not None:
            status = "expected" if reason else "failed"
        elif result.tried:
            status = "unexpected" if reason else "held"
        else:
            status = "not tried"
            reasons = (f"{skipped} ({count})" for skipped, count in result.skipped.most_common(3))
            reason = "; ".join(reasons) or "no time was left"
        yield Outcome(check=each, subject=subject, status=status, tried=result.tried, reason=reason, failure=failure)


def _broken_promise(error: Exception) -> str:
    """The name of the check whose promise is broken when a record fails with this error."""
    if isinstance(error, RecordError) and error.reason == "prompt_is_no_prefix":
        return "prompt_is_prefix"
    if isinstance(error, NoEndMarkerError) or (isinstance(error, RecordError) and error.reason == "no_end_marker"):
        return "end_marker_is_trained_once"
    if PRINTED_NONE in str(error):
        return "prints_no_none"
    return "valid_records_are_rendered"


_REFUSAL_HINT = (
    "a format that refuses some conversations says so in its leading comment: "
    "capabilities: {system: false}, or {multi_turn: false}"
)
