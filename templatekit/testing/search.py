"""Searches generated inputs for one that breaks a check, and for the smallest such input."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st

from templatekit.testing.checked_record import Violation

SHRINK_SECONDS = 20.0
"""The longest search for a smaller failing input."""

K = TypeVar("K")
Attempt = Callable[[Any], str | None]
"""Tries a check on one input: raises `Violation`, or returns why the input shows nothing, None if the check holds."""


class _StopSearch(BaseException):
    """Ends the search. Not an `Exception`, so that no code takes it for a failure."""


@dataclass
class SearchResult:
    """The results of one check on all inputs."""

    tried: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Inputs that showed nothing, by reason."""
    violation: Violation | None = None
    failing_input: Any = None


def search(
    attempts: Mapping[K, Attempt],
    strategy: st.SearchStrategy[Any],
    *,
    examples: int,
    seed: int,
    deadline: float | None,
    progress: Callable[[], object],
) -> dict[K, SearchResult]:
    """Try several checks on the same inputs. A check that has failed is not tried again.

    At the `deadline`, a time of `time.monotonic`, the search ends, but not before one input is tried.
    """
    results = {key: SearchResult() for key in attempts}
    count = 0

    def try_all(value: Any) -> None:
        nonlocal count
        if deadline is not None and count and time.monotonic() > deadline:
            raise _StopSearch
        count += 1
        progress()
        for key, result in results.items():
            if result.violation is None:
                try:
                    reason = attempts[key](value)
                except Violation as violation:
                    result.violation, result.failing_input = violation, value
                else:
                    result.tried += reason is None
                    result.skipped.update([reason] if reason else [])
        if all(result.violation for result in results.values()):
            raise _StopSearch

    with suppress(_StopSearch):
        _generate(strategy, try_all, examples=examples, seed=seed, phases=[Phase.generate])
    return results


def smallest_failing_input(
    attempt: Attempt, strategy: st.SearchStrategy[Any], *, examples: int, seed: int
) -> tuple[Any, Violation] | None:
    """Try one check on the same inputs again, then on smaller ones; None if it does not fail this time."""
    found: list[tuple[Any, Violation]] = []
    deadline = time.monotonic() + SHRINK_SECONDS

    def try_one(value: Any) -> None:
        if found and time.monotonic() > deadline:
            raise _StopSearch
        try:
            attempt(value)
        except Violation as violation:
            found.append((value, violation))
            raise

    # Hypothesis raises the violation itself, or reports that the check does not fail every time.
    with suppress(Exception, _StopSearch):
        _generate(strategy, try_one, examples=examples, seed=seed, phases=[Phase.generate, Phase.shrink])
    return min(reversed(found), key=lambda each: len(repr(getattr(each[0], "record", ""))), default=None)


def _generate(
    strategy: st.SearchStrategy[Any], use: Callable[[Any], None], *, examples: int, seed: int, phases: Sequence[Phase]
) -> None:
    """Run hypothesis on a strategy: deterministic for a seed, without output and without its database."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        phases=phases,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @hypothesis.given(strategy)
    def test(value: Any) -> None:
        use(value)

    test()
