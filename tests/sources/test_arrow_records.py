from __future__ import annotations

import datetime
import decimal
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from templatekit.errors import RecordError, SourceError
from templatekit.sources.arrow_records import ArrowSource
from templatekit.types import Record

Write = Callable[[str, "str | bytes"], str]
KINDS = ["parquet", "file.arrow", "stream.arrow", "feather", "ipc"]


def save(table: pa.Table, path: Path) -> str:
    if path.name.endswith("parquet"):
        pyarrow.parquet.write_table(table, path)
    elif path.name.endswith("feather"):
        pyarrow.feather.write_feather(table, path)
    else:
        new = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table)
    return str(path)


def read(address: str) -> list[Record | RecordError]:
    return list(ArrowSource().read(address))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_as_plain_values(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {
            "text": f"2020-01-0{day} ä😀",
            "number": day,
            "none": None,
            "when": datetime.datetime(2020, 1, day),
            "money": decimal.Decimal("1.50"),
            "bytes": b"\xff",
            "turns": [{"role": "user", "content": "hi"}] * day,
        }
        for day in range(1, 10)
    ] * 200
    address = save(pa.Table.from_pylist(rows), tmp_path / f"x.{kind}")
    got = read(address)
    assert got == rows
    assert isinstance(got[0], dict)
    assert all(type(value) in (str, int, type(None), datetime.datetime, decimal.Decimal, bytes, list)
               for value in got[0].values())  # fmt: skip


def test_all_kinds_of_text_come_as_text(tmp_path: Path) -> None:
    texts = ["a", "b", "a"]
    kinds = {"large": pa.large_string(), "view": pa.string_view(), "index": pa.dictionary(pa.int8(), pa.string())}
    table = pa.table({name: pa.array(texts).cast(kind) for name, kind in kinds.items()})
    assert read(save(table, tmp_path / "x.arrow")) == [dict.fromkeys(kinds, text) for text in texts]


def test_a_row_that_is_not_utf_8_is_one_error(tmp_path: Path) -> None:
    column = pa.array([b"good", b"b\xe9d", b"fine"]).view(pa.string())
    first, error, last = read(save(pa.table({"a": column}), tmp_path / "x.arrow"))
    assert [first, last] == [{"a": "good"}, {"a": "fine"}]
    assert isinstance(error, RecordError)
    assert (error.row, error.reason) == (1, "bad_encoding")
    assert "Invalid UTF8" in str(error)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    with pytest.raises(SourceError, match="two columns are named 'a'"):
        read(save(table, tmp_path / "x.parquet"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_records(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SourceError, match="no records"):
        read(save(pa.table({"a": pa.array([], pa.string())}), tmp_path / f"x.{kind}"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_our_errors(tmp_path: Path, kind: str) -> None:
    rows = [{"a": f"text {number}", "b": number} for number in range(300)]
    whole = Path(save(pa.Table.from_pylist(rows), tmp_path / f"x.{kind}")).read_bytes()
    chance = random.Random(1)
    path = tmp_path / f"damaged.{kind}"
    errors = 0
    for step in range(60):
        cut = whole[: len(whole) * step // 30] if step < 30 else whole
        data = bytearray(cut)
        if step >= 30:
            for _ in range(chance.randint(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            read(str(path))
        except SourceError:
            errors += 1
    assert errors >= 25


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"ARROW1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"FEA1", b'[{"a": 1}]']
)
def test_other_content(write: Write, content: bytes) -> None:
    for kind in ("parquet", "arrow"):
        with pytest.raises(SourceError):
            read(write(f"x.{kind}", content))


def test_a_missing_file_lists_its_neighbours(write: Write, tmp_path: Path) -> None:
    write("train.parquet", b"")
    with pytest.raises(SourceError, match=rf"did you mean '{tmp_path}/train\.parquet'\?"):
        read(str(tmp_path / "tain.parquet"))


@pytest.mark.parametrize("kind", ["parquet", "file.arrow", "stream.arrow"])
def test_a_large_file_is_streamed(tmp_path: Path, kind: str) -> None:
    table = pa.table({"a": [f"{number} " + "word " * 20 for number in range(50_000)]})
    address = save(table, tmp_path / f"x.{kind}")
    del table
    tracemalloc.start()
    try:
        assert sum(1 for _ in ArrowSource().read(address)) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
