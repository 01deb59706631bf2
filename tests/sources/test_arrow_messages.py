"""What Arrow's batches become in memory is known before they are decompressed, or made to Python values."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.errors import SourceError
from templatekit.hooks.registry import Registry
from templatekit.sources import arrow_records, open_source
from templatekit.sources.arrow_messages import Message, blocks_of, message_at
from templatekit.sources.arrow_sizes import python_size
from templatekit.sources.limits import Limits

Write = Callable[[str, "str | bytes"], str]

LIMITS = Limits(record=5000)


def as_bytes(kind: str, table: pa.Table, codec: str | None, rows: int | None = None) -> bytes:
    buffer, options = io.BytesIO(), pa.ipc.IpcWriteOptions(compression=codec)
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(buffer, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return buffer.getvalue()


def messages_of(data: bytes) -> list[Message]:
    """The messages of a stream, one after the other."""
    found, offset = [], 0
    while (message := message_at(io.BytesIO(data), offset)) is not None:
        found.append(message)
        offset = message.end
    return found


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_a_bomb_is_refused_before_it_is_decompressed(
    write: Write, registry: Registry, batches: list[pa.RecordBatch], kind: str, codec: str, dictionary: bool
) -> None:
    values = pa.array([f"{number:3} " * 1000 for number in range(60)])
    table = pa.table({"a": values.dictionary_encode() if dictionary else values})
    address = write("x.arrow", as_bytes(kind, table, codec))
    with pytest.raises(SourceError, match=r"record batch 0 is compressed, and has 0\.2 MB; expected at most 0\.2 MB"):
        list(open_source(address, registry, limits=LIMITS))
    assert not batches
    assert list(open_source(address, registry, limits=Limits(record=10_000))) == table.to_pylist()
    plain = write("y.arrow", as_bytes(kind, table, None))  # negative control: nothing to decompress
    assert list(open_source(plain, registry, limits=LIMITS)) == table.to_pylist()
    if not dictionary:  # and few rows in a batch
        several = write("z.arrow", as_bytes(kind, table, codec, rows=20))
        assert list(open_source(several, registry, limits=LIMITS)) == table.to_pylist()


@given(
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=20),
    codec=st.sampled_from(["zstd", "lz4", None]),
    rows=st.integers(1, 8),
)
def test_the_messages_of_a_file(lengths: list[int], codec: str | None, rows: int) -> None:
    texts = [None if length == 7 else "x" * length for length in lengths]
    table = pa.table({"a": texts, "n": [[1.5] * (length % 5) for length in lengths]})
    data = as_bytes("stream", table, codec, rows)
    schema, *found = messages_of(data)
    batches = table.to_batches(max_chunksize=rows)
    assert (schema.is_batch, schema.unpacked) == (False, 0)
    assert [message.is_batch for message in found] == [True] * len(batches)
    for message, batch in zip(found, batches, strict=True):
        if codec is None:
            assert message.unpacked == 0
        else:  # with padding, and without buffers that are left out
            assert 0 <= message.unpacked - batch.nbytes < 64 * 6 or batch.nbytes < 200
    file = as_bytes("file", table, codec, rows)
    blocks = blocks_of(io.BytesIO(file))
    assert not blocks.dictionaries
    of_file = [message_at(io.BytesIO(file), block.offset) for block in blocks.batches]
    assert [message and message.unpacked for message in of_file] == [message.unpacked for message in found]


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_message_is_an_error(data: bytes, at: int, byte: int) -> None:
    whole = bytearray(as_bytes("file", pa.table({"a": ["x" * 50]}), "zstd"))
    whole[at % len(whole)] = byte
    for found in (bytes(whole), b"\xff\xff\xff\xff\x90\0\0\0" + data, data, data + b"\x80\0\0\0ARROW1"):
        for read in (lambda file: message_at(file, 0), blocks_of, lambda file: message_at(file, 8)):
            with suppress(ValueError):
                read(io.BytesIO(found))


def shared(count: int, size: int) -> dict[str, Any]:
    """Columns of `count` rows that share a text of `size` bytes, by the type that lets them."""
    texts = pa.array(["w" * size])
    codes = pa.array([0] * count, pa.int32())
    dictionary = pa.DictionaryArray.from_arrays(codes, texts)
    offsets = pa.array(range(count + 1), pa.int32())
    return {
        "dictionary": dictionary,
        "in a list": pa.ListArray.from_arrays(offsets, dictionary),
        "in a struct": pa.StructArray.from_arrays([dictionary], ["t"]),
        "in a map": pa.MapArray.from_arrays(offsets, pa.array([f"{n}" for n in range(count)]), dictionary),
        "of lists": pa.DictionaryArray.from_arrays(codes, pa.array([["w" * size]])),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([count], pa.int32()), texts),
        "list views": pa.ListViewArray.from_arrays(codes, pa.array([1] * count, pa.int32()), texts),
        "string views": pa.array(["w" * size] * count).cast(pa.string_view()),
    }


@pytest.mark.parametrize("kind", shared(1, 1))
def test_a_text_counts_as_often_as_it_is_repeated(kind: str) -> None:
    column = shared(40, 1000)[kind]
    assert 40_000 <= python_size(column) < 45_000
    assert 7000 <= python_size(column.slice(3, 7)) < 8000
    assert python_size(pa.array(["x"] * 3)) == pa.array(["x"] * 3).nbytes
    if kind not in ("string views", "in a map"):
        assert column.nbytes < 3000  # negative control


@pytest.mark.parametrize("kind", ["dictionary", "in a list", "in a struct", "in a map", "of lists"])
def test_rows_that_share_a_text_are_made_one_by_one(kind: str) -> None:
    """All at once would take the memory of all of them."""
    column = shared(60, 4000)[kind]
    parts = list(arrow_records._to_python(pa.record_batch({"a": column}), LIMITS))
    assert [len(rows) for rows in parts] == [1] * 60
    assert [row for rows in parts for row in rows] == [{"a": value} for value in column.to_pylist()]
    (rows,) = arrow_records._to_python(pa.record_batch({"a": column}), Limits())  # negative control
    assert len(rows) == 60
