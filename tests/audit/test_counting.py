"""Counting in bounded memory: first rows, lengths, kinds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.audit import RULES
from templatekit.audit.context import AuditContext
from templatekit.audit.findings import LIMITS, MAX_EXACT, MAX_KINDS, OTHER_KINDS, FindingCounter, LengthCounter
from templatekit.audit.rule import Occurrence
from templatekit.formats.lookup import find_template
from templatekit.hooks.registry import Registry
from templatekit.pipeline.first_rows import FirstRows, text_key


@given(st.lists(st.lists(st.integers(0, 40), max_size=20), max_size=30))
def test_first_rows_are_those_of_a_dictionary(batches: list[list[int]]) -> None:
    rows, known, number = FirstRows(), dict[int, int](), 0
    for batch in batches:
        numbers = list(range(number, number + len(batch)))
        number += len(batch)
        found = rows.add(batch, numbers)
        expected = [known.setdefault(key, row) for key, row in zip(batch, numbers, strict=True)]
        assert found == [None if first == row else first for first, row in zip(expected, numbers, strict=True)]
        assert rows.find(batch) == expected
    assert rows.find([10**15]) == [None]


def test_first_rows_take_sixteen_bytes_a_text() -> None:
    rows = FirstRows()
    for start in range(0, 50_000, 256):
        numbers = list(range(start, min(start + 256, 50_000)))
        rows.add([text_key(str(number)) for number in numbers], numbers)
    assert sum(run.keys.nbytes + run.rows.nbytes for run in rows._runs) == 16 * 50_000
    assert rows.find([text_key("49999"), text_key("50000")]) == [49_999, None]


@given(st.lists(st.integers(0, MAX_EXACT), min_size=1, max_size=300))
def test_lengths_are_those_of_the_sorted_list(lengths: list[int]) -> None:
    counter = LengthCounter()
    for row, length in enumerate(lengths):
        counter.add(length, row)
    result = counter.result("tokens")
    assert result is not None
    ordered = sorted(lengths)
    percents = {50: result.median, 95: result.p95, 99: result.p99}
    assert (result.shortest, result.longest) == (ordered[0], ordered[-1])
    assert result.longest_row == lengths.index(ordered[-1])
    for percent, value in percents.items():
        assert value == ordered[math.ceil(len(ordered) * percent / 100) - 1]
    assert result.over == {limit: sum(length > limit for length in lengths) for limit in LIMITS}


def test_long_lengths_are_counted_by_three_digits() -> None:
    counter = LengthCounter()
    for length in range(10**6, 10**6 + 5000):
        counter.add(length, length)
    result = counter.result("characters")
    assert result is not None
    assert (result.shortest, result.median, result.longest) == (10**6, 10**6, 10**6 + 4999)
    assert len(counter._counts) == 1


def test_no_lengths_have_no_distribution() -> None:
    assert LengthCounter().result("tokens") is None


@pytest.fixture
def context(registry: Registry) -> AuditContext:
    from templatekit.config.data_options import DataOptions
    from templatekit.types import NO_TOKENIZER

    return AuditContext(
        options=DataOptions(),
        template=find_template("chatml", registry),
        special_tokens=NO_TOKENIZER,
        tokenizer=None,
        markers=(),
        end_marker="",
        trailing="",
        stop_tokens=None,
    )


def test_a_row_counts_once_and_once_for_each_kind(context: AuditContext) -> None:
    counter = FindingCounter(rule=RULES[0], rows_shown=2)
    counter.add([Occurrence(kind="a"), Occurrence(kind="b"), Occurrence(kind="a")], 0, context)
    counter.add([], 1, context)
    counter.add(iter([Occurrence(kind="b")]), 2, context)
    counter.add([Occurrence(kind="b")], 3, context)
    finding = counter.finding(4)
    assert (finding.count, finding.share, finding.rows) == (3, 0.75, (0, 2))
    assert [(part.what, part.count, part.first_row) for part in finding.parts] == [("b", 3, 0), ("a", 1, 0)]


def test_kinds_are_bounded(context: AuditContext) -> None:
    counter = FindingCounter(rule=RULES[0], rows_shown=2)
    for row in range(MAX_KINDS + 50):
        counter.add([Occurrence(kind=f"kind {row}")], row, context)
    parts = counter.finding(MAX_KINDS + 50).parts
    assert len(parts) == MAX_KINDS + 1
    assert (parts[0].what, parts[0].count) == (OTHER_KINDS, 50)
