"""Compressed files, patterns, URLs and standard input give the same rows as the plain file, or a clear error."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.errors import SourceError
from templatekit.hooks.registry import Registry
from templatekit.sources import open_source
from templatekit.sources.compression import Rewindable, decompressed, make_rewindable, stop_rewinding
from templatekit.sources.json_records import JsonSource, read_json

Write = Callable[[str, "str | bytes"], str]
Pack = Callable[[bytes], bytes]


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACKERS: dict[str, Pack] = {".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress, ".xz": lzma.compress}
ROWS = [{"n": number, "text": f"row {number} ä😀"} for number in range(2000)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
TABLE = "n,text\n" + "".join(f'{row["n"]},"{row["text"]}"\n' for row in ROWS)


def read(address: str, registry: Registry) -> list[Any]:
    return list(open_source(address, registry))


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("named", [True, False])
def test_compression_changes_nothing(write: Write, registry: Registry, suffix: str, named: bool) -> None:
    pack, end = PACKERS[suffix], suffix if named else ""
    assert read(write("x.jsonl" + end, pack(LINES)), registry) == ROWS
    assert read(write("x.json" + end, pack(json.dumps(ROWS).encode())), registry) == ROWS
    assert read(write("x.csv" + end, pack(TABLE.encode())), registry) == [
        {"n": str(row["n"]), "text": row["text"]} for row in ROWS
    ]


@pytest.mark.parametrize("suffix", PACKERS)
@given(data=st.data())
def test_a_cut_or_damaged_file_is_never_read_as_whole(suffix: str, data: st.DataObject) -> None:
    packed = bytearray(PACKERS[suffix](LINES))
    if data.draw(st.booleans(), "cut"):
        del packed[data.draw(st.integers(7, len(packed) - 1), "at") :]
    else:
        packed[data.draw(st.integers(len(packed) // 4, 3 * len(packed) // 4), "at")] ^= data.draw(st.integers(1, 255))
    got: list[Any] = []
    try:
        with decompressed(io.BytesIO(packed), "x") as stream:
            got += read_json(stream, "x.jsonl")
    except SourceError as error:
        assert "damaged" in str(error) or "not JSON" in str(error) or "no records" in str(error)
        return
    # zstd frames may go without a checksum: then a flipped bit shows in the text or nowhere.
    assert suffix == ".zst"
    assert len(got) >= len(ROWS) // 2


@given(data=st.binary(max_size=300), steps=st.lists(st.integers(1, 80), max_size=12), size=st.integers(1, 64))
def test_a_rewindable_stream_reads_as_a_file_does(data: bytes, steps: list[int], size: int) -> None:
    stream = io.BufferedReader(Rewindable(io.BytesIO(data)), size)
    assert b"".join(stream.read(step) for step in steps) == data[: sum(steps)]
    stream.seek(0)
    assert stream.readline() == io.BytesIO(data).readline()
    stream.seek(0)
    stop_rewinding(stream)
    assert stream.read() == data
    if len(data) > size:
        with pytest.raises(OSError, match="only what was read before"):
            io.BufferedReader(stream.raw, size).seek(len(data) + 1)


def test_the_buffer_is_dropped_after_stop_rewinding() -> None:
    raw = Rewindable(io.BytesIO(b"x" * 1_000_000))
    stream = io.BufferedReader(raw, 1000)
    stream.read(5000)
    stream.seek(0)
    stream.raw.stop_rewinding()
    while stream.read(10_000):
        pass
    assert raw._buffer is None
    with pytest.raises(OSError, match="only what was read before"):
        raw.seek(0)


def test_patterns(write: Write, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, rows in [("b.jsonl", ROWS[:2]), ("a.jsonl", ROWS[2:4]), ("sub/c.jsonl", ROWS[4:5])]:
        write(name, "".join(json.dumps(row) + "\n" for row in rows))
    write("a.csv", "n\n1\n")
    assert read(str(tmp_path / "*.jsonl"), registry) == [*ROWS[2:4], *ROWS[:2]]
    assert read(str(tmp_path / "**" / "*.jsonl"), registry) == [*ROWS[2:4], *ROWS[:2], ROWS[4]]
    assert read(str(tmp_path / "[b].jsonl"), registry) == ROWS[:2]
    with pytest.raises(SourceError, match=r"several formats of data files; found 1 \.csv, 2 \.jsonl"):
        read(str(tmp_path / "*.*"), registry)
    with pytest.raises(SourceError, match=r"no file matches; .*folder .* holds"):
        read(str(tmp_path / "*.parquet"), registry)


def test_an_error_in_a_pattern_names_its_file(write: Write, registry: Registry, tmp_path: Path) -> None:
    write("a.jsonl", '{"n": 1}\n')
    write("b.jsonl", '{"n": 1}\n{broken}\n')
    broken = read(str(tmp_path / "*.jsonl"), registry)[2]
    assert str(broken).startswith(f"{tmp_path}/b.jsonl:1: line 2: not JSON")


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *itertools.product(["x.csv", "x.tsv", "x.jsonl", "x.json"], ["", *PACKERS]),
        *itertools.product(["x.parquet", "x.arrow"], [""]),  # they are compressed inside
    ],
)
def test_a_reader_may_be_closed_before_its_end(
    memory: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    """Closing it raises nothing, and Python has nothing to report on standard error."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    content = {"x.csv": TABLE.encode(), "x.tsv": TABLE.replace(",", "\t").encode(), "x.jsonl": LINES}
    table, buffer = pa.Table.from_pylist(ROWS), io.BytesIO()
    if name == "x.parquet":
        pa.parquet.write_table(table, buffer, row_group_size=100)
    elif name == "x.arrow":
        with pa.ipc.new_file(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    data = content.get(name) or buffer.getvalue() or json.dumps(ROWS).encode()
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKERS[suffix](data) if suffix else data)
    memory.pipe(f"/{path.name}", path.read_bytes())
    for address in (str(path), str(tmp_path), f"{tmp_path}/x*", f"file://{path}", f"memory://{path.name}"):
        for limit in (0, 1, None):
            items = open_source(address, registry, limit=limit)
            next(items, None)
            assert isinstance(items, Generator)
            items.close()
    assert unraisable == []


def test_urls(memory: Any, registry: Registry, tmp_path: Path) -> None:
    memory.pipe("/rows.jsonl", LINES)
    memory.pipe("/packed.jsonl.zst", zstd(LINES))
    memory.pipe("/folder/b.jsonl", LINES[: LINES.index(b"\n") + 1])
    memory.pipe("/folder/a.jsonl.gz", gzip.compress(LINES))
    memory.pipe("/folder/README.md", b"#")
    table = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), table)
    memory.pipe("/rows.parquet", table.getvalue())
    memory.pipe("/rows.csv", TABLE.encode())
    for name in ("rows.jsonl", "packed.jsonl.zst", "rows.parquet"):
        assert read(f"memory://{name}", registry) == ROWS
    assert len(read("memory://rows.csv", registry)) == len(ROWS)
    assert read("memory://folder", registry) == [*ROWS, ROWS[0]]
    assert read("memory://folder/*.jsonl*", registry) == [*ROWS, ROWS[0]]
    (tmp_path / "x.jsonl").write_bytes(LINES)
    assert read(f"file://{tmp_path}/x.jsonl", registry) == ROWS


def test_errors_of_urls(memory: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/folder/b.txt", b"x")
    memory.pipe("/cut.jsonl.gz", gzip.compress(LINES)[:-20])
    memory.pipe("/bad.jsonl", b'{"n": 1}\n{"n": \n')
    for address, words in [
        ("memory://none.jsonl", r"memory://none\.jsonl: no such file or folder there"),
        ("memory://folder", r"no data files; found b\.txt; expected files that end in \.json"),
        ("memory://*.parquet", "no file there matches"),
        ("memory://cut.jsonl.gz", r"memory://cut\.jsonl\.gz: damaged gzip data; found an early end"),
        ("memry://x.jsonl", "no protocol named 'memry'; did you mean 'memory'"),
        ("https://127.0.0.1:9/x.jsonl", r"https://127\.0\.0\.1:9/x\.jsonl: (cannot be read|no such file)"),
    ]:
        with pytest.raises(SourceError, match=words):
            read(address, registry)
    assert str(read("memory://bad.jsonl", registry)[1]).startswith("memory://bad.jsonl:1: line 2: not whole")

    def lacking(address: str, **options: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    with pytest.raises(SourceError, match=r"reading s3:// needs a package that is not installed; .*Install s3fs"):
        read("s3://bucket/x.jsonl", registry)


def pipe(data: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "templatekit", "render", "--dataset", "-", "--template", "alpaca", *options]
    return subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)


ALPACA = b'{"instruction": "Say hi.", "output": "Hi!"}\n'


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_standard_input(pack: Pack) -> None:
    done = pipe(pack(ALPACA * 3))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["row"] for line in done.stdout.splitlines()] == [0, 1, 2]


def test_standard_input_that_cannot_be_read() -> None:
    for data, words in [(b"", b"-: no records; found an empty file"), (b"a,b\n1,2\n", b"-: no JSON records")]:
        done = pipe(data)
        assert done.returncode == 2
        assert words in done.stderr
    done = pipe(gzip.compress(ALPACA * 50)[:-9])
    assert done.returncode == 2
    assert b"-: damaged gzip data; found an early end" in done.stderr


def test_the_first_rows_of_a_pipe_do_not_wait_for_the_last() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, ALPACA * 30)
    with os.fdopen(read_end, "rb") as stream:
        rows = read_json(make_rewindable(stream), "-")
        assert next(iter(rows)) == json.loads(ALPACA)  # the pipe is still open
        os.close(write_end)


def test_memory_stays_flat(write: Write) -> None:
    import tracemalloc

    address = write("x.jsonl.zst", zstd(LINES * 60))
    tracemalloc.start()
    count = sum(1 for _ in JsonSource().read(address))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60 * len(ROWS)
    assert peak < 4_000_000 < len(LINES) * 60
