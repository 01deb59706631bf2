"""JSON of any layout is read back as it was written, and any bytes end in records or in this package's errors."""

from __future__ import annotations

import gzip
import io
import json
import random
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templatekit.errors import RecordError, SourceError
from templatekit.sources.json_array import Window, read_array
from templatekit.sources.json_lines import read_lines
from templatekit.sources.json_records import read_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = TEXT | st.sampled_from(["instruction", "input", "output", "text"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=8)
CHUNKS = st.integers(1, 64) | st.just(1 << 18)
BLANKS = st.text(" \t\r\n", max_size=30)


def read(data: bytes, name: str = "x.jsonl", chunk_size: int = 1 << 18) -> list[Any]:
    return list(read_json(io.BytesIO(data), name, chunk_size))


def same(got: list[Any], rows: list[Any]) -> bool:
    """Equal, and of equal types: True is not 1, and 1 is not 1.0."""
    return repr(got) == repr(rows)


@given(rows=ROWS, chunk_size=CHUNKS, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 40) | BLANKS)
def test_a_list_comes_back(rows: list[Any], chunk_size: int, ascii_only: bool, indent: int | str | None) -> None:
    text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    assert same(read(text.encode(), chunk_size=chunk_size), json.loads(text))
    assert same(list(read_array(Window(io.BytesIO(text.encode()), "x", chunk_size))), rows)


@given(
    rows=ROWS, ascii_only=st.booleans(), ends=st.sampled_from(["\n", "\r\n", "\n\n", " \r\n\t\n"]), last=st.booleans()
)
def test_lines_come_back(rows: list[Any], ascii_only: bool, ends: str, last: bool) -> None:
    text = ends.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + ends * last
    assert same(list(read_lines(io.BytesIO(text.encode()), "x")), rows)
    if len(rows) > 1:  # a file of one row may be the object that holds the rows
        assert same(read(text.encode(), "x.json"), rows)


@given(rows=ROWS, chunk_size=CHUNKS, key=st.sampled_from(["data", "rows", "instruction", ""]))
def test_a_list_in_an_object_comes_back(rows: list[Any], chunk_size: int, key: str) -> None:
    if all(row.keys() & {"role", "from"} for row in rows):
        return
    text = json.dumps({key: rows}, indent=1)
    assert same(read(text.encode(), "x.json", chunk_size), rows)


@given(rows=ROWS, data=st.data())
def test_compressed_files_come_back(rows: list[Any], data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([json.dumps(rows), "".join(json.dumps(row) + "\n" for row in [*rows, {}])]))
    packed = gzip.compress(text.encode())
    with gzip.open(io.BytesIO(packed)) as stream:
        assert same(list(read_json(cast("BinaryIO", stream), "x"))[: len(rows)], rows)


@given(rows=ROWS, row=st.integers(0, 7), bad=st.sampled_from(['{"a": NaN}', '{"a":1,"a":1}', "[]", "7", r'"\ud800"']))
def test_an_unusable_row_is_one_error(rows: list[Any], row: int, bad: str) -> None:
    texts = [json.dumps(item) for item in rows]
    texts.insert(row % (len(rows) + 1), bad)
    place = texts.index(bad)
    for got in (read(f"[{','.join(texts)}]".encode(), chunk_size=7), list(read_lines(_lines(texts), "x"))):
        assert isinstance(got.pop(place), RecordError)
        assert same(got, rows)


def _lines(texts: list[str]) -> io.BytesIO:
    return io.BytesIO("\n".join(texts).encode())


@given(rows=ROWS, cut=st.floats(0, 1, exclude_max=True), chunk_size=CHUNKS, lines=st.booleans())
def test_a_truncated_file_is_never_read_as_whole(rows: list[Any], cut: float, chunk_size: int, lines: bool) -> None:
    """The rows before the cut are read, and there is an error unless the cut is between lines."""
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    data = text.encode()[: int(len(text) * cut)]
    got: list[Any] = []
    error = False
    stream = io.BytesIO(data)
    try:
        for item in read_lines(stream, "x") if lines else read_array(Window(stream, "x", chunk_size)) if data else ():
            got.append(item)
    except SourceError:
        error = True
    good = [item for item in got if not isinstance(item, RecordError)]
    assert same(good, rows[: len(good)])
    whole = lines and data.decode().rstrip("\n").split("\n") == list(map(json.dumps, rows))[: len(good)]
    assert error or len(good) < len(got) or whole or not data


def _outcome(data: bytes, name: str, chunk_size: int) -> str:
    """The records and errors of reading some bytes, as text."""
    got = []
    try:
        for item in read_json(io.BytesIO(data), name, chunk_size):
            assert isinstance(item, (dict, RecordError))
            got.append(str(item))
    except SourceError as error:
        got.append(str(error).partition("; ")[0])  # what follows is an excerpt of the chunk
    assert got, "neither a record nor an error"
    return "\n".join(got)


PIECES = [
    *'{}[],:"\\\n\r\t \0',
    *["1", "-", "1e999", "NaN", "tru", "null", "\\u", "\\ud83d", "é", "\ufeff", "\u2028", "PAR1", "'"],
]
JSONISH = st.lists(st.sampled_from([*PIECES, '"a"', '{"a":1}', '[{"a":1}]', '{"data":[']), max_size=40).map(
    lambda parts: "".join(parts).encode()
)


@settings(max_examples=400)
@given(data=JSONISH | st.binary(max_size=60), chunk_size=CHUNKS, name=st.sampled_from(["x.json", "x.jsonl"]))
def test_any_bytes_end_in_records_or_our_errors(data: bytes, chunk_size: int, name: str) -> None:
    """The division of the file into chunks makes no difference to the outcome."""
    assert _outcome(data, name, chunk_size) == _outcome(data, name, 1 << 18)


@settings(max_examples=200)
@given(rows=ROWS, seed=st.integers(0, 1 << 32), chunk_size=CHUNKS, indent=st.none() | st.integers(0, 2))
def test_damaged_files_end_in_records_or_our_errors(rows: list[Any], seed: int, chunk_size: int, indent: int) -> None:
    chance = random.Random(seed)
    data = bytearray(json.dumps(rows, indent=indent, ensure_ascii=False).encode())
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    assert _outcome(bytes(data), "x.json", chunk_size) == _outcome(bytes(data), "x.json", 1 << 18)


@given(data=st.binary(max_size=200))
def test_any_gzip_stream_ends_in_records_or_our_errors(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    from templatekit.sources.json_records import JsonSource

    path = tmp_path_factory.getbasetemp() / "fuzz.gz"
    for content in (b"\x1f\x8b" + data, gzip.compress(data)[: len(data)]):
        path.write_bytes(content)
        try:
            items = list(JsonSource().read(str(path)))
        except SourceError:
            continue
        assert items


def test_the_comparison_can_fail() -> None:
    """The negative control: the comparison of the properties distinguishes different rows."""
    assert not same([{"a": 1}], [{"a": True}])
    assert not same([{"a": 1}], [{"a": 1.0}])
    assert not same(read(b'{"a": 1}\n{"b": 2}'), [{"a": 1}])
    assert json.loads('{"a": 1, "a": 2}') == {"a": 2}, "json would lose a value in silence"
