"""The pytest decorator that makes a test of each check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.testing.runner import CHECKS, find_check
from templatekit.testing.subject import Subject
from templatekit.testing.subject_lookup import Format, subjects_of
from templatekit.testing.tiny_tokenizers import MAIN
from templatekit.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pytest


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

    chosen = [find_check(name) for name in (CHECKS if checks is None else checks)]
    for name in expected_failures:
        find_check(name)
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
