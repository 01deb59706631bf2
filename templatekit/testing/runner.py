"""Tries checks on generated inputs: together where they share them, and again alone for the smallest failing one."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from unittest import SkipTest

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st

from templatekit.errors import PluginError, RecordError, UnknownNameError
from templatekit.testing import check_agreement, check_content, check_control, check_execution, check_mask
from templatekit.testing.check import Check, Violation
from templatekit.testing.failures import Failure
from templatekit.testing.subject import Silent, Subject, Unmade

CHECKS: Mapping[str, Check[Any]] = {
    each.name: each
    for module in (check_execution, check_content, check_mask, check_control, check_agreement)
    for each in vars(module).values()
    if isinstance(each, Check) and each.function.__module__ == module.__name__
}
"""Every check by name, in the order of the properties."""

Status = Literal["held", "failed", "expected", "unexpected", "not applicable", "not tried"]
SHRINK_SECONDS = 20.0
"""The longest search for a smaller failing input."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one check on one subject."""

    check: Check[Any]
    subject: Subject
    status: Status
    """`expected`: it failed, as was said it would. `unexpected`: it held, though it was said it would fail."""
    tried: int = 0
    """The inputs about which it had something to say."""
    reason: str = ""
    """Why it was not applicable or not tried; why it was expected to fail."""
    failure: Failure | None = None


class _TimeUp(BaseException):
    """The time that was given is over. No `Exception`, so that nothing takes it for a failure."""


class _Tally:
    """What became of one check while inputs were generated."""

    def __init__(self) -> None:
        self.tried = 0
        self.silent: Counter[str] = Counter()
        self.violation: Violation | None = None
        self.trial: Any = None


def run_checks(
    subject: Subject,
    checks: Iterable[str | Check[Any]] | None = None,
    *,
    examples: int = 100,
    seed: int = 0,
    expected_failures: Mapping[str, str] = {},
    time_budget: float | None = None,
    shrink: bool = True,
    progress: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Tries checks (all of them if none are named) on `examples` generated inputs each.

    The same seed gives the same inputs. `time_budget` is in seconds, and ends the generation early, though not before
    one input; what fails after that is not found. `expected_failures` maps names of checks to the reason why they may
    fail. Without `shrink` a failure shows the first record that was found, not the smallest. `progress` is called once
    an input.
    """
    chosen = [find_check(each) for each in (CHECKS if checks is None else checks)]
    for name in expected_failures:
        find_check(name)
    ends = None if time_budget is None else time.monotonic() + time_budget
    try:
        _ = subject.shape  # raises where no record can be made
    except PluginError as error:
        return [_without_records(each, subject, error) for each in chosen]
    outcomes = {
        each: Outcome(check=each, subject=subject, status="not applicable", reason=why)
        for each in chosen
        if (why := each.not_applicable(subject))
    }
    groups: dict[Any, list[Check[Any]]] = {}
    for each in chosen:
        if each not in outcomes:
            groups.setdefault(each.given, []).append(each)
    for left, (given, members) in zip(range(len(groups), 0, -1), groups.items(), strict=True):
        strategy = given(subject)
        now = time.monotonic()
        tallies = _try_all(
            members,
            strategy,
            examples=examples,
            seed=seed,
            ends=None if ends is None else now + (ends - now) / left,
            progress=progress,
        )
        for each, tally in tallies.items():
            reason = expected_failures.get(each.name, "")
            failure = None
            if tally.violation is not None and shrink:
                failure = _smallest(each, subject, strategy, examples=examples, seed=seed, first=tally.violation)
            elif tally.violation is not None:
                failure = Failure.of(each, subject, tally.trial, tally.violation)
            outcomes[each] = _outcome(each, subject, tally, failure, reason)
    return [outcomes[each] for each in chosen]


def _without_records(check: Check[Any], subject: Subject, error: PluginError) -> Outcome:
    if check.name != "valid_records_are_rendered":
        return Outcome(check=check, subject=subject, status="not tried", reason="no record can be made")
    failure = Failure.of(check, subject, None, Violation(str(error)))
    return Outcome(check=check, subject=subject, status="failed", tried=1, failure=failure)


def enforce(check: Check[Any], subject: Subject, *, examples: int | None = None, seed: int = 0) -> None:
    """Raises `AssertionError` with all that is known of the failure where a check does not hold.

    `unittest.SkipTest`, which pytest takes as well, where the check says nothing about the subject.
    """
    count = settings().max_examples if examples is None else examples
    (outcome,) = run_checks(subject, [check], examples=count, seed=seed)
    if outcome.failure is not None:
        raise AssertionError(f"{outcome.failure}")
    if outcome.status in ("not applicable", "not tried"):
        raise SkipTest(f"{outcome.status}: {outcome.reason}")


def find_check(name: str | Check[Any]) -> Check[Any]:
    """A check by its name; raises `UnknownNameError`."""
    if isinstance(name, Check):
        return name
    if name not in CHECKS:
        raise UnknownNameError("check", name, CHECKS)
    return CHECKS[name]


def _outcome(
    check: Check[Any],
    subject: Subject,
    tally: _Tally,
    failure: Failure | None,
    reason: str,
) -> Outcome:
    if failure is None:
        if not tally.tried:
            said = "; ".join(f"{why} ({count})" for why, count in tally.silent.most_common(3)) or "no time was left"
            return Outcome(check=check, subject=subject, status="not tried", reason=said)
        status: Status = "unexpected" if reason else "held"
        return Outcome(check=check, subject=subject, status=status, tried=tally.tried, reason=reason)
    status = "expected" if reason else "failed"
    return Outcome(check=check, subject=subject, status=status, tried=tally.tried, reason=reason, failure=failure)


def _try_all(
    checks: Sequence[Check[Any]],
    strategy: st.SearchStrategy[Any],
    *,
    examples: int,
    seed: int,
    ends: float | None,
    progress: Callable[[], object],
) -> dict[Check[Any], _Tally]:
    """Tries checks on the same inputs. One that has failed is not tried again."""
    tallies = {each: _Tally() for each in checks}
    count = 0

    def look(trial: Any) -> None:
        nonlocal count
        if ends is not None and count and time.monotonic() > ends:
            raise _TimeUp
        count += 1
        progress()
        for each, tally in tallies.items():
            if tally.violation is None:
                try:
                    silent = attempt(each, trial)
                except Violation as violation:
                    tally.violation, tally.trial = violation, trial
                else:
                    tally.tried += silent is None
                    tally.silent.update([silent] if silent else [])
        if all(tally.violation for tally in tallies.values()):
            raise _TimeUp

    with suppress(_TimeUp):
        _generate(strategy, look, examples=examples, seed=seed, phases=[Phase.generate])
    return tallies


def _smallest(
    check: Check[Any], subject: Subject, strategy: st.SearchStrategy[Any], *, examples: int, seed: int, first: Violation
) -> Failure:
    """The same inputs again for one check alone, then smaller ones for as long as it fails."""
    found: list[tuple[Any, Violation]] = []
    ends = time.monotonic() + SHRINK_SECONDS

    def look(trial: Any) -> None:
        if found and time.monotonic() > ends:
            raise _TimeUp
        try:
            attempt(check, trial)
        except Violation as violation:
            found.append((trial, violation))
            raise

    # What hypothesis says of it, such as that it does not fail every time, is not needed.
    with suppress(Exception, _TimeUp):
        _generate(strategy, look, examples=examples, seed=seed, phases=[Phase.generate, Phase.shrink])
    if not found:  # it does not fail every time
        return Failure.of(check, subject, None, first)
    trial, violation = min(reversed(found), key=lambda each: len(repr(getattr(each[0], "record", ""))))
    return Failure.of(check, subject, trial, violation)


def attempt(check: Check[Any], trial: Any) -> str | None:
    """Tries one check on one input: None where it was tried and holds, else why the input says nothing.

    Raises `Violation`. Where no sample came of a record, that is a failure of the one check whose promise it breaks.
    """
    try:
        return check.function(trial)
    except Violation:
        raise
    except Silent as silent:
        return str(silent)
    except Unmade as unmade:
        if unmade.declared or broken_promise(unmade.error) != check.name:
            return "nothing came of the record"
        said = f"{type(unmade.error).__name__}: {unmade.error}"
        raise Violation("nothing came of a valid record", found=said, hint=_hint(unmade.error)) from unmade.error
    except Exception as error:  # a plugin's code may raise anything, and so may what a wrong one leads to
        if broken_promise(error) not in (check.name, "valid_records_are_rendered"):
            return "nothing came of a record like it"  # which that check tells
        raise Violation(f"raised {type(error).__name__}: {error}") from error


def broken_promise(error: Exception) -> str:
    """The check whose promise is broken where a record does not come through for this reason."""
    said = str(error)
    if isinstance(error, RecordError) and error.reason == "prompt_is_no_prefix":
        return "prompt_is_prefix"
    if "prints None" in said:
        return "prints_no_none"
    if "leaves open what ends an answer" in said:
        return "end_marker_is_trained_once"
    return "valid_records_are_rendered"


def _hint(error: Exception) -> str:
    if isinstance(error, RecordError) and error.reason == "template_refused":
        return (
            "a format that refuses some conversations says so in its leading comment: "
            "capabilities: {system: false}, or {multi_turn: false}"
        )
    return ""


def _generate(
    strategy: st.SearchStrategy[Any], look: Callable[[Any], None], *, examples: int, seed: int, phases: Sequence[Phase]
) -> None:
    """Runs hypothesis over a strategy: deterministic for a seed, silent, and without its files."""

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
    def test(trial: Any) -> None:
        look(trial)

    state = random.getstate()
    try:
        test()
    finally:
        random.setstate(state)
