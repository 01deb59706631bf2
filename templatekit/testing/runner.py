"""The list of all checks, and the function that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from templatekit.errors import UnknownNameError
from templatekit.testing import check_agreement, check_content, check_control, check_execution, check_mask
from templatekit.testing.check import Check, Outcome, try_together, untried_outcomes
from templatekit.testing.subject import Subject

CHECKS: Mapping[str, Check[Any]] = {
    each.name: each
    for module in (check_execution, check_content, check_mask, check_control, check_agreement)
    for each in vars(module).values()
    if isinstance(each, Check) and each.function.__module__ == module.__name__
}
"""Every check by name, in the order of the properties."""


def find_check(name: str | Check[Any]) -> Check[Any]:
    """A check by its name; raises `UnknownNameError`."""
    if isinstance(name, Check):
        return name
    if name not in CHECKS:
        raise UnknownNameError("check", name, CHECKS)
    return CHECKS[name]


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
    """Try checks on a subject, each on `examples` generated inputs.

    Args:
        subject: The adapter or template to check.
        checks: Names of checks, or checks; all of `CHECKS` by default.
        examples: Number of inputs for each check.
        seed: The same seed gives the same inputs.
        expected_failures: Names of checks that may fail, with the reason.
        time_budget: Seconds after which no more inputs are generated, though each check is tried on one input.
            Failures that later inputs would show are not found.
        shrink: Search for the smallest record that fails. Otherwise a failure shows the first one found.
        progress: Called once for each input.
    """
    chosen = [find_check(each) for each in (CHECKS if checks is None else checks)]
    for name in expected_failures:
        find_check(name)
    end = None if time_budget is None else time.monotonic() + time_budget
    outcomes = untried_outcomes(chosen, subject)
    groups: dict[Any, list[Check[Any]]] = {}
    for each in chosen:
        if each not in outcomes:
            groups.setdefault(each.given, []).append(each)
    for groups_left, group in zip(range(len(groups), 0, -1), groups.values(), strict=True):
        now = time.monotonic()
        for outcome in try_together(
            group,
            subject,
            examples=examples,
            seed=seed,
            expected_failures=expected_failures,
            deadline=None if end is None else now + (end - now) / groups_left,
            shrink=shrink,
            progress=progress,
        ):
            outcomes[outcome.check] = outcome
    return [outcomes[each] for each in chosen]
