"""Every check fails on the wrong formats that it must catch, and passes on correct ones."""

from __future__ import annotations

from typing import Any

import pytest
from testing.mutants import MUTANTS, RIGHT
from testkit.budget import LONG, budget

from templatekit.testing import CHECKS, run_checks

OWN, OTHERS = (300, 60) if LONG else (60, 2)
"""Number of inputs for the check that must catch a mutant, which ends at the first failure, and for all others."""


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_format_passes_every_check(name: str) -> None:
    outcomes = run_checks(RIGHT[name](), examples=budget(OWN))
    assert {o.check.name: str(o.failure) for o in outcomes if o.status == "failed"} == {}


def test_every_check_has_a_mutant_and_a_right_format() -> None:
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)
    tried = {o.check.name for make in RIGHT.values() for o in run_checks(make(), examples=15) if o.tried}
    assert tried == set(CHECKS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_by_its_check(mutant: Any) -> None:
    (own,) = run_checks(mutant.make(), [mutant.check], examples=OWN, shrink=False)
    assert own.status == "failed", (own.status, own.reason)


@pytest.mark.full
def test_the_whole_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    """Which other checks catch each mutant, counted."""
    caught: dict[str, set[str]] = {}
    cells = 0
    for mutant in MUTANTS:
        subject = mutant.make()
        outcomes = run_checks(subject, set(CHECKS) - {mutant.check}, examples=OTHERS, shrink=False)
        cells += 1 + sum(outcome.status != "not applicable" for outcome in outcomes)
        caught[mutant.name] = {outcome.check.name for outcome in outcomes if outcome.status == "failed"}
    alone = sum(not others for others in caught.values())
    with capsys.disabled():
        print(
            f"\nmutants: {len(MUTANTS)} × {len(CHECKS)} checks, {cells} cells apply; {len(caught)} of "
            f"{len(MUTANTS)} are caught by their own check, {alone} of them by no other"
        )
