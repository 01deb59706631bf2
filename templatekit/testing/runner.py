"""The list of all checks, the function that runs them, and the pytest decorator that makes a test of each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from templatekit.errors import UnknownNameError
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.testing import (
    check_agreement,
    check_answers,
    check_content,
    check_control,
    check_execution,
    check_mask,
)
from templatekit.testing.check import Check, Outcome, try_together, untried_outcomes
from templatekit.testing.subject import Subject
from templatekit.testing.subject_lookup import Format, subjects_of
from templatekit.testing.tiny_tokenizers import MAIN
from templatekit.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pytest

CHECKS: Mapping[str, Check[Any]] = {
    each.name: each
    for module in (check_execution, check_content, check_mask, check_control, check_agreement, check_answers)
    for each in vars(module).values()
    if isinstance(each, Check) and each.function.__module__ == module.__name__
}
"""Every check by name, in the order of the properties."""


def _chosen(checks: Collection[str | Check[Any]], expected_failures: Mapping[str, str]) -> list[Check[Any]]:
    """The checks by these names; raises `UnknownNameError`."""
    for name in (*(each for each in checks if isinstance(each, str)), *expected_failures):
        if name not in CHECKS:
            raise UnknownNameError("check", name, CHECKS)
    return [CHECKS[each] if isinstance(each, str) else each for each in checks]


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
    chosen = _chosen(CHECKS if checks is None else list(checks), expected_failures)
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


def parametrize_with_checks(
    formats: Iterable[Format | Subject],
    *,
    tokenizers: Iterable[str | os.PathLike[str] | Tokenizer] = MAIN,
    checks: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] = {},
    registry: Registry | None = None,
) -> pytest.MarkDecorator:
    """Parametrize a pytest test with `subject` and `check`: one call for each format, tokenizer and check.

    `expected_failures` maps names of checks to the reason why the formats may fail them. A check that holds
    although it is listed is reported as a failure.
    """
    import pytest

    chosen = _chosen(CHECKS if checks is None else list(checks), expected_failures)
    known = registry or create_registry()
    subjects = [
        subject
        for each in formats
        for subject in ([each] if isinstance(each, Subject) else subjects_of(each, tuple(tokenizers), known))
    ]
    return pytest.mark.parametrize(
        ("subject", "check"),
        [
            pytest.param(
                subject,
                check,
                id=f"{subject.label}-{check.name}",
                marks=[pytest.mark.xfail(reason=expected_failures[check.name], raises=AssertionError, strict=True)]
                if check.name in expected_failures
                else [],
            )
            for subject in subjects
            for check in chosen
        ],
    )
