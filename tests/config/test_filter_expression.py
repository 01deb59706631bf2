"""A filter condition has the same meaning as in Python, and everything else that Python can express is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.config.filter_expression import FilterExpression
from templatekit.errors import ConfigError

RECORD = {"response": "Paris is big.", "category": "qa", "score": 0.5, "tags": ["a", "b"], "meta": {"x": 1}}
ATOMS = st.sampled_from(
    [
        "response",
        "category",
        "score",
        "tags",
        "meta['x']",
        "row.get('none', 7)",
        "3",
        "'qa'",
        "None",
        "True",
        "len(tags)",
    ]
)


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    binary = st.sampled_from(["and", "or", "==", "!=", "in", "not in", "<", ">="])
    return st.one_of(
        st.builds(lambda two, op: f"({two[0]} {op} {two[1]})", pair, binary),
        st.builds("(not {})".format, inner),
        st.builds(lambda two: f"({two[0]} if {two[1]} else 'x')", pair),
        st.builds("len({})".format, inner),
        st.builds("({}, 1)".format, inner),
        st.builds("{}[1:]".format, inner),
    )


CONDITIONS = st.recursive(ATOMS, nested, max_leaves=8)


def python(text: str) -> Any:
    try:
        return bool(eval(text, {"len": len}, {**RECORD, "row": RECORD}))
    except Exception as error:
        return type(error).__name__


def filtered(text: str) -> Any:
    try:
        return FilterExpression(text).holds(RECORD)
    except ValueError as error:
        return str(error).partition(":")[0]


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@given(text=CONDITIONS)
def test_a_condition_means_the_same_as_in_python(text: str) -> None:
    assert filtered(text) == python(text)


def test_negative_control_a_wrong_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    import ast

    from templatekit.config import filter_expression

    monkeypatch.setitem(filter_expression._COMPARE, ast.Lt, lambda one, other: one <= other)
    assert python("3 < len(tags) + 1") != filtered("3 < len(tags) + 1")


@pytest.mark.parametrize(
    "text",
    [
        "(1).__class__",
        "response.__class__",
        "response.format(1)",
        "().__class__.__bases__[0].__subclasses__()",
        "__import__('os')",
        "open('x')",
        "eval('1')",
        "[x for x in response]",
        "lambda: 1",
        "9 ** 9 ** 9",
        "1 << 10",
        "response.replace('a', 'b' )",
        "f'{response}'",
        "(x := 1)",
        "len(*response)",
        "len(obj=response)",
        "response[::2]",
        "b'x' == response",
        "",
        "a b",
        "import os",
        "1 +",
        "x" * 3000,
        "(" * 500 + "1" + ")" * 500,
    ],
)
def test_other_python_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="filter"):
        FilterExpression(text)


@pytest.mark.parametrize("text", ["'x' * 1000000000 == ''", "'%9999999999d' % 1 == ''", "[1] * 1000000000 == []"])
def test_large_values_cannot_be_made(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="expected a number"):
        FilterExpression(text).holds(RECORD)
    assert time.perf_counter() - start < 1


def test_errors_name_what_is_wrong_with_the_record() -> None:
    with pytest.raises(ValueError, match=r"no column 'categry'; did you mean 'category'\?.*row\.get\('categry'\)"):
        FilterExpression("categry == 'qa'").holds(RECORD)
    with pytest.raises(ValueError, match="TypeError: '>' not supported"):
        FilterExpression("response > 3").holds(RECORD)
    with pytest.raises(ValueError, match=r"float 0\.5 has no lower"):
        FilterExpression("score.lower() == ''").holds(RECORD)


def test_a_column_may_be_named_row() -> None:
    assert FilterExpression("row == 4").holds({"row": 4})
