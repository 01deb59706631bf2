"""Records that make one example are grouped."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from templatekit import Record, RecordError
from templatekit.sources.grouping import RecordGroup, columns_of, group_records

RECORDS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.fixed_dictionaries({"group": st.none() | st.sampled_from("ab"), "x": st.integers(0, 3)}), max_size=8
)


def group(record: Record) -> Any:
    return record["group"]


@given(RECORDS)
def test_neighbours_of_one_group_come_together_in_order(records: list[dict[str, Any]]) -> None:
    expected: list[Any] = []
    for value, neighbours in groupby(records, key=group):
        several = list(neighbours)
        expected += several if value is None else [{"records": several}]
    found = list(group_records(records, group))
    assert found == expected
    assert all(isinstance(one, RecordGroup) == ("records" in one) for one in found if not isinstance(one, RecordError))


@given(RECORDS, st.integers(0, 8))
def test_a_record_error_is_passed_on_and_splits_no_group(records: list[dict[str, Any]], place: int) -> None:
    error = RecordError("broken")
    items: list[Record | RecordError] = [*records]
    items.insert(place, error)
    found = list(group_records(items, group))
    assert found.count(error) == 1
    assert [one for one in found if one is not error] == list(group_records(records, group))


def test_one_group_is_held_at_a_time() -> None:
    read = 0

    def records() -> Any:
        nonlocal read
        for index in range(100):
            read += 1
            yield {"group": str(index // 2), "x": index}

    found = group_records(records(), group)
    for index in range(10):
        assert next(found) == {"records": [{"group": str(index), "x": 2 * index + i} for i in range(2)]}
        assert read <= 2 * index + 3


def test_the_columns_of_a_group() -> None:
    record = {"a": 1}
    assert columns_of(record) is record
    assert columns_of(RecordGroup(records=[{"a": 1, "b": 2}, {"b": 3, "c": 4}])) == {"a": 1, "b": 2, "c": 4}
