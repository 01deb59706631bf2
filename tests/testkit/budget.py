"""How much the suite tries: enough to notice a mistake by default, everything in the full profile.

`make test` tries a few examples of each property, and some cases of each long list. `make test-full` tries all of them.
`HYPOTHESIS_PROFILE=long` tries 20 times as many examples again of each property without a budget of its own; it is
meant for a few tests at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
LONG = PROFILE == "long"
FULL = LONG or PROFILE == "full"
DEFAULT_EXAMPLES, FULL_EXAMPLES, LONG_EXAMPLES = 8, 20, 400
"""The count of examples for a property without a budget of its own."""


def budget(full: int) -> int:
    """The number of examples that a test tries: all in the full profile, a quarter by default, at least 3."""
    return full if FULL else max(3, full // 4)


def one_in(step: int, cases: Iterable[Any]) -> list[Any]:
    """The cases as parameters of a test; by default one in `step` is tried, the others in the full profile alone."""
    return [case if index % step == 0 else _only_in_full(case) for index, case in enumerate(cases)]


def _only_in_full(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)
