"""No file fills the memory, and none is read forever: each reader, with bounds of a few kilobytes."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit import sources
from templatekit.errors import RecordError, SourceError
from templatekit.hooks.loading import create_registry
from templatekit.hooks.registry import Registry
from templatekit.hooks.specs import hookimpl
from templatekit.sources import json_decoder, open_source
from templatekit.sources.compression import decompressed, make_rewindable
from templatekit.sources.csv_records import CsvSource
from templatekit.sources.json_decoder import Decoder, record_error
from templatekit.sources.json_records import JsonSource
from templatekit.sources.limits import Limits, in_megabytes, size_of
from templatekit.sources.parquet_pages import ColumnChunk, pages_of, row_groups_of

Write = Callable[[str, "str | bytes"], str]

LIMITS = Limits(record=5000)
SMALL = {"a": "x"}
LARGE = {"a": "y" * 6000}
TOO_LARGE = "too large; found {} bytes; expected at most 5000 bytes; to allow more: --max-record-size"


class Endless(io.RawIOBase):
    """A stream that gives `start`, then `again` forever; reading more than a gigabyte of it fails."""

    def __init__(self, again: bytes, start: bytes = b"") -> None:
        self.start, self.again, self.given = start, again * (1 + (1 << 16) // len(again)), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self.start[: len(view)] or self.again[: len(view)]
        self.start = self.start[len(data) :]
        view[: len(data)] = data
        self.given += len(data)
        assert self.given < 1 << 30, "this is read forever"
        return len(data)


def read(name: str, stream: Any, limits: Limits = LIMITS) -> Iterator[Any]:
    source = CsvSource() if name.endswith("sv") else JsonSource()
    return source.limited(limits).read_stream(make_rewindable(stream), name)


def rows_of(name: str, data: bytes, limits: Limits = LIMITS) -> list[Any]:
    return list(read(name, io.BytesIO(data), limits))


def messages(rows: list[Any]) -> list[str]:
    return [row.message for row in rows if isinstance(row, RecordError)]


def as_file(name: str, rows: list[dict[str, str]]) -> bytes:
    if name.endswith(".json"):
        return json.dumps(rows).encode()
    if name.endswith("l"):
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    separator = "\t" if name == "x.tsv" else ","
    lines = [separator.join(f'"{value}"' for value in row.values()) for row in rows]
    return "\r\n".join([separator.join(rows[0]), *lines]).encode()


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv"])
@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_large_row_costs_that_row_alone(name: str, at: int) -> None:
    given = [SMALL, {"a": "z"}, {"a": "0"}] * 2
    rows = rows_of(name, as_file(name, [*given[:at], LARGE, *given[at:]]))
    assert rows[:at] + rows[at + 1 :] == given
    error = rows[at]
    assert isinstance(error, RecordError)
    assert (error.row, error.reason) == (at, "too_large")
    assert "too large; found 60" in error.message
    assert error.message.endswith("expected at most 5000 bytes; to allow more: --max-record-size")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv"])
def test_a_row_of_the_limit_is_read(name: str) -> None:
    """Negative control: what the limit allows is read, and what a larger limit allows."""
    rows = [SMALL, {"a": "y" * (LIMITS.record - 12)}, SMALL]
    assert rows_of(name, as_file(name, rows)) == rows
    assert rows_of(name, as_file(name, [LARGE, SMALL]), Limits(record=10_000)) == [LARGE, SMALL]


@pytest.mark.parametrize("name", ["x.jsonl", "x", "x.ndjson"])
@pytest.mark.parametrize("size", [5001, 5002, 20_000, 300_000])
def test_the_size_of_a_line_is_found(name: str, size: int) -> None:
    line = json.dumps({"a": ""}).replace('""', f'"{"y" * (size - 9)}"').encode()
    assert len(line) == size
    for end in (b"\n", b"\r\n"):
        rows = rows_of(name, line + end + b'{"a": "x"}' + end)
        assert rows[1:] == [SMALL]
        assert messages(rows) == [
            f"line 1: {TOO_LARGE.format(size) if size < 100_000 else TOO_LARGE.replace('{} bytes', '0.3 MB')}"
        ]


BLANKS = [b"\n", b"\r\n", b" ", b"\t"]


@pytest.mark.parametrize(
    ("name", "blank"),
    [
        *itertools.product(["x.jsonl", "x.json", "-", "x.csv", "x.tsv"], BLANKS),
        *itertools.product(["x.jsonl", "x.json", "-"], [b" \n"]),  # such a line is a row of a table with one column
    ],
)
@pytest.mark.parametrize("start", ["", "row"])
def test_endless_blanks_end(name: str, blank: bytes, start: str) -> None:
    first = as_file(name if name != "-" else "x.jsonl", [SMALL])[: None if name != "x.json" else -1]
    if name == "x.json" and start:
        first += b","
    stream = Endless(blank, (first + b"\n") if start else b"")
    found: list[Any] = []
    with pytest.raises(SourceError, match="of blank lines or spaces where a row was due") as caught:
        found += read(name, stream)
    assert stream.given < 3_000_000
    assert "--max-record-size" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *itertools.product(["x.jsonl", "-", "x.csv", "x.tsv"], [b"y", b"yy ", b'""']),
        *itertools.product(["x.csv", "x.tsv"], [b"yy\n", b'""\n']),  # elsewhere, such lines are rows
    ],
)
def test_an_endless_row_ends(name: str, text: bytes) -> None:
    stream = Endless(text, b'a\n"' if name.endswith("sv") else b'{"a": "x"}\n{"a": "')
    with pytest.raises(SourceError, match=r"row . is too large; found more than .*without (the end of a line|its end)"):
        list(read(name, stream))
    assert stream.given < LIMITS.skipped + 4_000_000


@pytest.mark.parametrize("start", [b'[{"a": "x"}, {"a": "', b'{"data": [{"a": "', b'\n\n{\n"data": ["'])
def test_an_endless_value_of_a_list_or_an_object_ends(start: bytes) -> None:
    stream = Endless(b"y", start)
    with pytest.raises(SourceError, match="too large"):
        list(read("x.json", stream))
    assert stream.given < 4_000_000


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_bomb_ends(name: str) -> None:
    """A compressed file of kilobytes, which unpacks to far more than may be skipped."""
    limits = Limits(record=2000)
    unpacked = b"0" * (limits.skipped + 2_000_000)
    for packed in (gzip.compress(unpacked), bz2.compress(unpacked), lzma.compress(unpacked), pack_zstd(unpacked)):
        with decompressed(io.BytesIO(packed), name) as stream, pytest.raises(SourceError, match="too large"):
            list((CsvSource() if name == "x.csv" else JsonSource()).limited(limits).read_stream(stream, name))


def pack_zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


def test_memory_does_not_grow_with_a_row() -> None:
    import tracemalloc

    for name, start in (("x.jsonl", b'{"a": "'), ("x.csv", b'a\n"'), ("x.json", b'[{"a": "')):
        tracemalloc.start()
        with pytest.raises(SourceError):
            list(read(name, Endless(b"y", start), Limits(record=100_000)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8_000_000, name


_CELLS = st.text(st.sampled_from('a,"\n\r\t;'), max_size=30)


@given(st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=30), st.integers(12, 60))
def test_csv_rows_are_those_of_the_csv_module(cells: list[tuple[str, str]], limit: int) -> None:
    """However the file is divided into chunks; and after a row that is too large the next one is found."""
    import csv

    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([("k", "l"), *cells])
    expected = [dict(zip("kl", row, strict=True)) for row in cells]
    assert rows_of("x.csv", buffer.getvalue().encode(), Limits(record=100_000)) == expected
    got = rows_of("x.csv", buffer.getvalue().encode(), Limits(record=limit))
    assert len(got) == len(expected)
    for found, wanted in zip(got, expected, strict=True):
        size = sum(map(len, wanted.values()))
        if isinstance(found, RecordError):
            assert found.reason == "too_large"
            assert size + wanted["k"].count('"') + wanted["l"].count('"') + 7 > limit
        else:
            assert found == wanted
            assert size <= limit


def test_line_numbers_after_a_large_row() -> None:
    data = b'a,b\n\n"x\ny",1\n' + b'"' + b"z\n" * 4000 + b'",2\n\n3\n'
    rows = rows_of("x.csv", data)
    assert [str(row).split(";")[0] for row in rows[1:]] == [
        "x.csv:1: line 5: too large",
        "x.csv:2: line 4007: found 1 values, the last '3'",
    ]


def parquet(table: pa.Table, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    pa.parquet.write_table(table, buffer, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "stream"])
def test_a_large_row_of_a_table(write: Write, registry: Registry, kind: str) -> None:
    rows = [{"a": "x" * size, "n": [{"b": "é" * size}]} for size in (10, 9000, 20, 30, 3000, 40)]
    table, buffer = pa.Table.from_pylist(rows), io.BytesIO()
    if kind == "parquet":
        buffer = parquet(table)
    elif kind == "feather":
        pa.feather.write_feather(table, buffer)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(buffer, table.schema) as writer:
            writer.write_table(table)
    address = write(f"x.{'parquet' if kind == 'parquet' else 'arrow'}", buffer.getvalue())
    got = list(open_source(address, registry, limits=LIMITS))
    assert [row for row in got if isinstance(row, dict)] == [rows[0], *rows[2:4], rows[5]]
    assert [(row.row, row.reason) for row in got if isinstance(row, RecordError)] == [
        (1, "too_large"),
        (4, "too_large"),
    ]
    assert list(open_source(address, registry, limits=Limits(record=40_000))) == rows


def test_a_dictionary_counts_only_what_a_row_uses(write: Write, registry: Registry) -> None:
    values = pa.array(["x" * 4000, "y" * 4000, "z"]).dictionary_encode()
    table, buffer = pa.table({"a": values}), io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    address = write("x.arrow", buffer.getvalue())
    rows: list[Any] = list(open_source(address, registry, limits=LIMITS))
    assert [len(row["a"]) for row in rows] == [4000, 4000, 1]


def test_a_large_page_is_refused_before_it_is_decoded(write: Write, registry: Registry) -> None:
    table = pa.table({"a": ["x" * 90_000, "y"]})
    for options in ({"use_dictionary": False}, {"use_dictionary": True}):
        address = write("x.parquet", parquet(table, **options).getvalue())
        with pytest.raises(SourceError, match=r"column 'a' in row group 0 has a page of 90\d\d\d bytes"):
            list(open_source(address, registry, limits=LIMITS))
        (large, small) = open_source(address, registry, limits=Limits(record=10_000))
        assert isinstance(large, RecordError)
        assert small == {"a": "y"}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_the_pages_of_a_file(version: str, codec: str, dictionary: bool) -> None:
    table = pa.table(
        {
            "a": [f"text {number} " * 9 for number in range(5000)],
            "n": [[number, None] if number % 3 else None for number in range(5000)],
        }
    )
    buffer = parquet(
        table,
        data_page_version=version,
        compression=codec,
        use_dictionary=dictionary,
        data_page_size=9000,
        row_group_size=2000,
        write_statistics=True,
    )
    metadata = pa.parquet.read_metadata(buffer)
    found = row_groups_of(buffer)
    assert [len(columns) for columns in found] == [metadata.num_columns] * metadata.num_row_groups
    for group, index in itertools.product(range(metadata.num_row_groups), range(metadata.num_columns)):
        column = metadata.row_group(group).column(index)
        assert all((getattr(column, name) or 0) == value for name, value in found[group][index]._asdict().items())
        pages = list(pages_of(buffer, found[group][index]))
        assert any(page.is_dictionary for page in pages) == column.has_dictionary_page
        headers = column.total_uncompressed_size - sum(page.size for page in pages)
        assert 0 < headers < 400 * len(pages)


@given(st.binary(max_size=60))
def test_a_damaged_page_header_is_an_error(data: bytes) -> None:
    column = ColumnChunk(0, len(data), 0, 0)
    try:
        for page in pages_of(io.BytesIO(data), column):
            assert page.size >= 0
    except ValueError:
        pass


@given(st.binary(max_size=80))
def test_a_damaged_footer_is_an_error(data: bytes) -> None:
    try:
        groups = row_groups_of(io.BytesIO(data + len(data).to_bytes(4, "little") + b"PAR1"))
    except ValueError:
        return
    assert all(size >= 0 for columns in groups for column in columns for size in column)


@pytest.mark.parametrize("kind", range(1, 13))
def test_a_list_is_no_longer_than_the_header(kind: int) -> None:
    """However many items it claims to have, of whatever type."""
    data = bytes([0x19, 0xF0 | kind]) + b"\xff" * 8 + b"\x7f" + bytes(40)
    with pytest.raises(ValueError, match=r"cut or too long|unknown type"):
        list(pages_of(io.BytesIO(data), ColumnChunk(0, len(data), 0, 0)))


def test_a_number_has_at_most_64_bits() -> None:
    data = b"\x15" + b"\xff" * 60_000 + b"\0"
    with pytest.raises(ValueError, match="more than 64 bits"):
        list(pages_of(io.BytesIO(data), ColumnChunk(0, len(data), 0, 0)))


LARGE_ROWS = {
    "a page each": ({"a": [f"{number}" * 1000 for number in range(100, 160)]}, {"use_dictionary": False}),
    "one text": ({"a": ["w" * 4000] * 700}, {}),
    "one text in each column": ({name: [name * 1200] * 700 for name in "abcd"}, {}),
    "one text in a list": ({"a": [["w" * 4000]] * 700}, {}),
    "one text, then a page each": ({"a": ["w" * 4000] * 20 + [f"{n:4000}" for n in range(60)]}, {}),
}
PAGES = {"data_page_size": 1, "write_batch_size": 1, "dictionary_pagesize_limit": 8000}


@pytest.mark.parametrize("name", LARGE_ROWS)
def test_large_rows_are_decoded_a_few_at_a_time(
    write: Write, registry: Registry, batches: list[pa.RecordBatch], name: str
) -> None:
    """512 rows at a time would take the memory of 512 rows of the largest size."""
    columns, options = LARGE_ROWS[name]
    table = pa.table(columns)
    address = write("x.parquet", parquet(table, **PAGES, **options).getvalue())
    assert list(open_source(address, registry, limits=LIMITS)) == table.to_pylist()
    assert max(batch.nbytes for batch in batches) <= 9 * LIMITS.record
    assert max(batch.num_rows for batch in batches) > 1
    batches.clear()
    assert list(open_source(address, registry)) == table.to_pylist()
    assert max(batch.nbytes for batch in batches) > 30 * LIMITS.record  # negative control


def test_small_rows_are_decoded_many_at_a_time(write: Write, registry: Registry, batches: list[pa.RecordBatch]) -> None:
    """Also where their dictionary has as many bytes as a row of the largest size."""
    table = pa.table({"a": [f"{number:20}" for number in range(5000)]})
    address = write("x.parquet", parquet(table).getvalue())
    assert list(open_source(address, registry, limits=Limits(record=10_000))) == table.to_pylist()
    assert batches[0].num_rows == 512


def test_a_dictionary_counts_in_each_row_that_repeats_it(
    write: Write, registry: Registry, batches: list[pa.RecordBatch]
) -> None:
    table, buffer = pa.table({"a": pa.array(["x" * 4000] * 60 + [None, "y"]).dictionary_encode()}), io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    address = write("x.arrow", buffer.getvalue())
    assert list(open_source(address, registry, limits=LIMITS)) == table.to_pylist()
    of_objects = [batch for batch in batches if batch.num_rows == 1]
    assert len(of_objects) >= 60
    batches.clear()
    assert list(open_source(address, registry)) == table.to_pylist()
    assert [batch.num_rows for batch in batches] == [62]  # negative control


def test_a_table_in_a_stream_is_copied_up_to_a_bound(write: Write, registry: Registry) -> None:
    table = pa.table({"a": [f"{number}" for number in range(9000)]})
    packed = gzip.compress(parquet(table).getvalue())
    address = write("x.parquet", packed)
    assert list(open_source(address, registry)) == table.to_pylist()
    with pytest.raises(SourceError, match="in a stream; expected less"):
        list(open_source(address, registry, limits=Limits(record=20)))


def test_the_records_of_other_sources_are_measured() -> None:
    from templatekit.hooks.contracts import Source

    class Mine(Source):
        name = "mine"

        def accepts(self, address: str) -> bool:
            return address == "mine"

        def read(self, address: str) -> Iterator[Any]:
            yield from ({"a": "x"}, {"a": [{"b": "y" * 6000}]}, {"a": "z"})

    class Plugin:
        @hookimpl
        def templatekit_sources(self) -> list[Source]:
            return [Mine()]

    registry = create_registry(entry_points=False, plugins=[Plugin(), sources])
    rows = list(open_source("mine", registry, limits=LIMITS))
    assert rows[::2] == [{"a": "x"}, {"a": "z"}]
    assert str(rows[1]) == f"mine:1: {TOO_LARGE.format(6002)}"
    assert len(list(open_source("mine", registry))) == 3


def test_a_line_of_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_decoder, "MAX_CONTAINERS", 1000)
    monkeypatch.setattr(json_decoder, "_LARGE", 100)
    many, few = ('{"a": [' + ",".join(["{}"] * count) + "]}" for count in (2000, 900))
    limits = Limits(record=100_000)
    for name in ("x.jsonl", "-"):
        rows = rows_of(name, f"{few}\n{many}\n{few}\n".encode(), limits)
        assert [isinstance(row, RecordError) for row in rows] == [False, True, False]
        assert "more than 1,000 objects and lists" in messages(rows)[0]
        assert "more than 1,000 objects and lists" in messages(rows_of(name, f"{many}\n{few}\n".encode(), limits))[0]
    for text in (f"[{few},{many}]", many, f'{{"data": {many}}}'):
        with pytest.raises(SourceError, match="more than 1,000 objects and lists"):
            rows_of("x.json", text.encode(), limits)


def test_an_object_of_many_keys_one_of_them_twice() -> None:
    """In less than a second: comparing each key with each other would take minutes."""
    text = "{" + ",".join(f'"k{number}": 0' for number in range(200_000)) + ', "k199999": 1}'
    value, _, needs_check = Decoder().decode(text)
    assert "key 'k199999' twice" in str(record_error(value, needs_check))


def test_sizes() -> None:
    assert size_of({"ab": "cde", "f": [1, None, {"g": b"hi"}]}) == 11
    assert [in_megabytes(size) for size in (5000, 100_000, 16_000_000, 2_147_000_000)] == [
        *("5000 bytes", "0.1 MB", "16 MB", "2,147 MB")
    ]
