from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.errors import ConfigError, RecordError
from templatekit.sources.columns import map_columns, parse_columns

RECORD: dict[str, Any] = {
    "question": "Q",
    "answer": {"text": "A", "score": 1},
    "instances": [{"input": "I", "output": "O"}],
    "dotted.name": "D",
    "null": None,
}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"instruction": "question"}, {"instruction": "Q"}),
        ({"response": "answer.text"}, {"response": "A"}),
        ({"context": "instances.0.input", "response": "instances.0.output"}, {"context": "I", "response": "O"}),
        ({"x": "dotted.name"}, {"x": "D"}),
        ({"x": "null"}, {"x": None}),
        ({"question": "question"}, {"question": "Q"}),
        ({"x": "question", "y": "question"}, {"x": "Q", "y": "Q"}),
        ({"question": "answer.text", "old": "question"}, {"question": "A", "old": "Q"}),
        ({"question": "null", "null": "question"}, {"question": None, "null": "Q"}),
    ],
)
def test_columns_get_new_names(columns: dict[str, str], expected: dict[str, Any]) -> None:
    record = copy.deepcopy(RECORD)
    rest = {key: value for key, value in RECORD.items() if key not in columns.values()}
    assert map_columns(record, columns) == {**rest, **expected}
    assert record == RECORD, "the record was changed"


def test_without_columns_the_record_is_the_same() -> None:
    assert map_columns(RECORD, {}) is RECORD


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("qestion", "no column 'qestion'; did you mean 'question'?"),
        ("zzz", "no column 'zzz'; known: answer, dotted.name, instances, null, question"),
        ("answer.txt", "no column 'answer.txt' in 'answer'; did you mean 'text'?"),
        ("instances.1.input", "no column 'instances.1' in 'instances'; known: 0"),
        ("instances.-1.input", "no column 'instances.-1' in 'instances'; known: 0"),
        ("question.text", "no column 'question.text'; found str in 'question'"),
        ("null.text", "no column 'null.text'; found NoneType in 'null'"),
        (".", "no column ''"),
    ],
)
def test_a_missing_column_names_the_nearest(column: str, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        map_columns(RECORD, {"response": column})
    assert words in caught.value.message
    assert caught.value.reason == "missing_column"
    assert caught.value.field == column


def test_nothing_is_overwritten() -> None:
    with pytest.raises(RecordError, match=r"would be overwritten by column 'answer\.text'") as caught:
        map_columns(RECORD, {"question": "answer.text"})
    assert caught.value.reason == "column_taken"
    assert caught.value.field == "question"


@given(
    record=st.dictionaries(st.text(max_size=3), st.integers()),
    columns=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
)
def test_no_value_is_lost(record: dict[str, int], columns: dict[str, str]) -> None:
    before = dict(record)
    try:
        mapped = map_columns(record, columns)
    except RecordError:
        assert not set(columns.values()) <= set(record) or set(columns) & set(record)
    else:
        assert set(record.values()) == set(mapped.values())
        assert all(mapped[field] == record[column] for field, column in columns.items())
    assert record == before


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a=b", {"a": "b"}),
        ("a=b,c=d", {"a": "b", "c": "d"}),
        (" a = b , response = answer.text ", {"a": "b", "response": "answer.text"}),
        ("a=b=c", {"a": "b=c"}),
        ("", {}),
        ("  ", {}),
    ],
)
def test_the_written_form(text: str, columns: dict[str, str]) -> None:
    assert parse_columns(text) == columns


@pytest.mark.parametrize("text", ["a", "a=", "=b", "=", "a=b,", ",a=b", "a=b,,c=d", "a=b c=d,e"])
def test_the_written_form_is_checked(text: str) -> None:
    with pytest.raises(ConfigError, match="expected FIELD=COLUMN"):
        parse_columns(text)


def test_a_field_comes_once() -> None:
    with pytest.raises(ConfigError, match="'a' twice, as 'b' and 'c'"):
        parse_columns("a=b,a=c")
