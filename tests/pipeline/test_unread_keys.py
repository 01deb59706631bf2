"""The keys of a record that the adapter does not read: a bounded number of names of bounded length."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from templatekit.config.data_options import DataOptions
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.counts import OTHER_KEYS, Counts
from templatekit.pipeline.pipeline import Pipeline
from templatekit.pipeline.reader import Reader

GOOD = {"instruction": "add", "output": "3"}


def unread(extra: dict[str, int]) -> dict[str, object]:
    return Reader(DataOptions(adapter="alpaca"), create_registry()).unread({**GOOD, **extra})


def test_a_few_keys_are_named_as_they_are() -> None:
    extra = {f"key {number}": number for number in range(40)}
    assert unread(extra) == extra
    assert unread({}) == {}


def test_of_many_keys_the_first_are_named_and_the_others_counted() -> None:
    found = unread({f"key {number}": number for number in range(100_000)})
    assert list(found) == [*(f"key {number}" for number in range(40)), "… and 99,960 more"]


def test_a_long_key_is_shortened() -> None:
    assert list(unread({"x" * 1_000_000: 1, "y": 2})) == ["x" * 79 + "…", "y"]


def counted(keys: Iterable[str], first_row: int = 0) -> Counts:
    counts = Counts()
    for row, key in enumerate(keys, first_row):
        counts.add_unread(key, row)
    return counts


def test_over_all_rows_a_bounded_number_of_keys_is_counted() -> None:
    """Where keys are data, each row has others."""
    records = [{**GOOD, f"id {row}": row, "note": row} for row in range(1500)]
    pipeline = Pipeline(DataOptions(adapter="alpaca"), create_registry())
    assert len(list(pipeline.run(records, source="x"))) == 1500
    found = pipeline.counts.unread_keys
    assert (len(found), found["note"], found["id 998"], found[OTHER_KEYS]) == (1001, 0, 998, 999)
    (note,) = (line for line in pipeline.counts.lines(tokens=False) if "does not read" in line)
    assert note.count("first in row") == 40
    assert note.endswith(" and more than 960 others")


def test_few_keys_are_all_named() -> None:
    """Negative control."""
    for count, end in ((40, "(first in row 9)"), (45, " and 5 others")):
        (_, note) = counted(f"k{number}" for number in range(count)).lines(tokens=False)
        assert note.count("first in row") == 40
        assert note.endswith(end)


@given(st.lists(st.integers(0, 1100), max_size=30), st.integers(0, 2500), st.integers(0, 2500), st.integers(900, 1100))
def test_the_counts_of_parts_are_those_of_the_whole(before: list[int], one: int, other: int, different: int) -> None:
    keys = [f"{number}" for number in [*before, *(number % different for number in range(2500))]]
    merged, start = Counts(), 0
    for end in (*sorted((one, other)), len(keys)):
        merged.merge(counted(keys[start:end], start))
        start = end
    whole = counted(keys)
    assert merged.unread_keys == whole.unread_keys
    assert (OTHER_KEYS in whole.unread_keys) == (len(set(keys)) > 1000)
