from __future__ import annotations

from typing import get_args

import pytest

from templatekit.errors import ConfigError
from templatekit.training.schedule import Schedule, learning_rate


def _rates(schedule: Schedule, total: int, warmup: float) -> list[float]:
    return [learning_rate(step, total, peak=1.0, schedule=schedule, warmup=warmup) for step in range(total)]


def test_the_three_schedules() -> None:
    assert _rates("constant", 4, 0) == [1, 1, 1, 1]
    assert _rates("linear", 4, 0) == [1, 0.75, 0.5, 0.25]
    assert _rates("cosine", 4, 0) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])


def test_a_warm_up_in_steps_and_as_a_fraction() -> None:
    expected = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert _rates("linear", 10, 2) == pytest.approx(expected)
    assert _rates("linear", 10, 0.2) == _rates("linear", 10, 2)
    assert _rates("linear", 10, 0.11) == _rates("linear", 10, 2)


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("warmup", [0, 0.03, 0.999, 1, 7, 50])
@pytest.mark.parametrize("total", [1, 2, 7, 40])
def test_no_step_is_wasted(schedule: Schedule, warmup: float, total: int) -> None:
    rates = _rates(schedule, total, warmup)
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_half_a_step_is_no_warm_up() -> None:
    with pytest.raises(ConfigError, match="a number of steps is whole"):
        learning_rate(0, 10, peak=1.0, schedule="linear", warmup=1.5)
