"""CSV: every value is text, exactly as in the file, and a row that is not CSV is one error among the other rows."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.errors import RecordError, SourceError
from templatekit.sources.csv_records import CsvSource
from templatekit.types import Record

Write = Callable[[str, "str | bytes"], str]

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["", " ", '"', '""', "a,b", "a\nb", "a\r\nb", "2020-01-01", "1.50", "NaN", "true", "null", ";", "\t", "\ufeff"]
)
NAMES = st.lists(CELLS, min_size=2, max_size=4, unique=True)


def read(data: bytes, address: str = "x.csv") -> list[Record | RecordError]:
    return list(CsvSource().read_stream(io.BufferedReader(io.BytesIO(data)), address))


def written(header: list[str], rows: list[list[str]], quoting: Literal[0, 1], end: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator=end)
    writer.writerows([header, *rows])
    return out.getvalue().encode()


@given(header=NAMES, data=st.data(), quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), bom=st.booleans())
def test_written_rows_are_read_back(header: list[str], data: st.DataObject, quoting: Literal[0, 1], bom: bool) -> None:
    if not bom and header[0].startswith("\ufeff"):
        header[0] = "x" + header[0]
    rows = data.draw(st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header)), min_size=1, max_size=4))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    # The module does not quote a carriage return by itself where lines end otherwise.
    if any("\r" in cell for cell in itertools.chain(header, *rows)) or bom:
        quoting = csv.QUOTE_ALL
    content = written(header, rows, quoting, end)
    got = read((b"\xef\xbb\xbf" if bom else b"") + content)
    assert got == [dict(zip(header, row, strict=True)) for row in rows]
    assert all(type(value) is str for record in got if not isinstance(record, RecordError) for value in record.values())


def test_the_check_would_see_a_guessed_type() -> None:
    content = b"a,b\n2020-01-01,007\n"
    assert read(content) == [{"a": "2020-01-01", "b": "007"}]
    assert read(content) != [{"a": "2020-01-01", "b": 7}]


@pytest.mark.parametrize(
    ("content", "name"),
    [("a;b\n1;2,5\n", "x.csv"), ("a\tb\n1\t2,5\n", "x.tsv"), ("a\tb\n1\t2,5\n", "x.csv"), ("a,b\n1,'2,5'\n", "")],
)
def test_delimiters(content: str, name: str) -> None:
    if name:
        assert read(content.encode(), name) == [{"a": "1", "b": "2,5"}]
    else:  # a comma in single quotes still separates cells
        assert isinstance(read(content.encode())[0], RecordError)


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        (b"only one", "wrong_columns", "line 3: found 1 values, the last 'only one'; expected 2: a, b; put"),
        (b"1,2,3", "wrong_columns", "found 3 values, the last '3'; expected 2"),
        (b"caf\xe9,x", "bad_encoding", r"not UTF-8; found 'caf\udce9'; convert"),
        (b'"x"y,2', "invalid_csv", "expected each quote within a value to be doubled"),
    ],
)
def test_a_broken_row_is_one_error(line: bytes, reason: str, words: str) -> None:
    first, broken, last = read(b"a,b\n1,2\n" + line + b"\n5,6\n", "f.csv")
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "5", "b": "6"})
    assert isinstance(broken, RecordError)
    assert broken.reason == reason
    assert words in str(broken)
    assert str(broken).startswith("f.csv:1:")


def test_an_open_quote_is_no_row() -> None:
    first, broken = read(b'a,b\n1,2\n3,"never closed\n4,5\n')
    assert first == {"a": "1", "b": "2"}
    assert isinstance(broken, RecordError)
    assert broken.reason == "truncated"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\n\n", "an empty file"),
        (b"a,b\n", "no records"),
        (b"a,a\n1,2\n", "two columns are named 'a'"),
        (b"a,caf\xe9\n1,2\n", "the header is not UTF-8"),
        ("a,b\n1,2".encode("utf-16"), "UTF-16"),
        (b"PAR1xxxx", "a Parquet file"),
        (b"PK\x03\x04xxxx", "a zip archive"),
        (b'"a,b\n1,2\n', "the header is broken"),
    ],
)
def test_files_that_are_not_csv(content: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        read(content)


def test_a_large_value(write: Write) -> None:
    text = "x" * 10_000_000
    assert list(CsvSource().read(write("x.csv", f"a,b\n{text},2\n"))) == [{"a": text, "b": "2"}]


def test_blank_lines_are_no_rows_and_lines_are_counted() -> None:
    first, broken = read(b'\na,b\n\n"1\n1",2\n\n3\n')
    assert first == {"a": "1\n1", "b": "2"}
    assert isinstance(broken, RecordError)
    assert broken.row == 1
