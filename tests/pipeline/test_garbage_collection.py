"""The collector's threshold is raised while a batch is made, and restored between batches."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from templatekit.pipeline.garbage_collection import THRESHOLD, with_rare_gc


@pytest.fixture(autouse=True)
def before() -> Iterator[tuple[int, int, int]]:
    kept = gc.get_threshold()
    gc.set_threshold(701, 11, 12)
    yield 701, 11, 12
    gc.set_threshold(*kept)


def test_the_threshold_is_raised_for_the_making_alone(before: tuple[int, int, int]) -> None:
    seen = []
    for made in with_rare_gc(gc.get_threshold() for _ in range(3)):
        seen.append((made[0], gc.get_threshold()))
    assert seen == [(THRESHOLD, before)] * 3
    assert gc.get_threshold() == before


def test_an_error_and_one_within_another_put_it_back(before: tuple[int, int, int]) -> None:
    inner = with_rare_gc(with_rare_gc(gc.get_threshold()[0] for _ in range(2)))
    assert list(inner) == [THRESHOLD] * 2
    with pytest.raises(ZeroDivisionError):
        list(with_rare_gc(1 // 0 for _ in range(1)))
    assert gc.get_threshold() == before


@pytest.mark.parametrize("set_by_hand", [0, 10 * THRESHOLD])
def test_who_collects_never_or_more_rarely_is_left_alone(set_by_hand: int) -> None:
    gc.set_threshold(set_by_hand, 11, 12)
    assert list(with_rare_gc(gc.get_threshold()[0] for _ in range(2))) == [set_by_hand] * 2
    assert gc.get_threshold() == (set_by_hand, 11, 12)
