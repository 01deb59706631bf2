"""Reads the headers of Parquet's pages, which say how large a page becomes before Arrow decompresses it.

Arrow decodes a page as a whole, and as many rows as are asked for: a file of a megabyte may fill the memory with one
page, or with one text that a dictionary repeats in each row. pyarrow does not show these headers, and for some damaged
footers it ends the process when it is asked for a column's metadata (pyarrow 26.0). Headers and footers are structs of
Thrift's compact protocol; of these, only what is needed is parsed here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

_HEADER_BYTES = 1 << 16
_DICTIONARY = 2
_Value: TypeAlias = "int | dict[int, _Value] | list[_Value] | None"


class Page(NamedTuple):
    """What the header of a page says."""

    is_dictionary: bool
    size: int
    """Bytes after decompression."""


class ColumnChunk(NamedTuple):
    """Where one column of a row group lies in the file, and how many bytes it has."""

    total_uncompressed_size: int
    total_compressed_size: int
    data_page_offset: int
    dictionary_page_offset: int
    """0 where there is none."""


def row_groups_of(file: BinaryIO) -> list[list[ColumnChunk]]:
    """The columns of each row group; raises `ValueError` for a damaged footer."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - 8 - length))
    groups = _parse_struct(io.BytesIO(file.read(length))).get(4)
    return [[_column_chunk(column) for column in _items(group, 1)] for group in _list(groups)]


def _column_chunk(value: _Value) -> ColumnChunk:
    metadata = value.get(3) if isinstance(value, dict) else None
    fields = metadata if isinstance(metadata, dict) else {}
    return ColumnChunk(_count(fields.get(6)), _count(fields.get(7)), _count(fields.get(9)), _count(fields.get(11, 0)))


def _count(value: _Value) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("the footer has a column without its size or place")
    return value


def _items(value: _Value, key: int) -> list[_Value]:
    return _list(value.get(key) if isinstance(value, dict) else None)


def _list(value: _Value) -> list[_Value]:
    if not isinstance(value, list):
        raise ValueError("the footer lacks its row groups or their columns")
    return value


def pages_of(file: BinaryIO, column: ColumnChunk) -> Iterator[Page]:
    """The pages of one column of a row group; raises `ValueError` for a damaged header."""
    offset = column.dictionary_page_offset or column.data_page_offset
    end = offset + column.total_compressed_size
    while offset < end:
        file.seek(offset)
        header = io.BytesIO(file.read(min(_HEADER_BYTES, end - offset)))
        fields = _parse_struct(header)
        kind, size, packed = (fields.get(key) for key in (1, 2, 3))
        if not (isinstance(kind, int) and isinstance(size, int) and isinstance(packed, int)) or min(size, packed) < 0:
            raise ValueError(f"the header of a page at byte {offset} is damaged")
        yield Page(kind == _DICTIONARY, size)
        offset += header.tell() + packed


def _parse_struct(stream: BinaryIO, depth: int = 0) -> dict[int, _Value]:
    """The fields of a struct by their number: integers, structs and lists; all others are None."""
    fields: dict[int, _Value] = {}
    number = 0
    while True:
        byte = _byte(stream)
        if not byte:
            return fields
        delta, kind = byte >> 4, byte & 15
        number = number + delta if delta else _zigzag(stream)
        fields[number] = _parse_value(stream, kind, depth)


def _parse_value(stream: BinaryIO, kind: int, depth: int, *, in_list: bool = False) -> _Value:
    if depth > 16:
        raise ValueError("a header is nested too deeply")
    if kind in (1, 2):  # true and false, which have a byte of their own only in lists
        return _byte(stream) if in_list else None
    if kind == 3:
        return _byte(stream)
    if kind in (4, 5, 6):
        return _zigzag(stream)
    if kind == 7:
        _bytes(stream, 8)
    elif kind == 8:
        stream.seek(_varint(stream), io.SEEK_CUR)
    elif kind in (9, 10):
        byte = _byte(stream)
        count = _varint(stream) if byte >> 4 == 15 else byte >> 4
        return [_parse_value(stream, byte & 15, depth + 1, in_list=True) for _ in range(count)]
    elif kind == 12:
        return _parse_struct(stream, depth + 1)
    else:
        raise ValueError(f"a header has a field of the unknown type {kind}")
    return None


def _bytes(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ValueError("a header is cut or too long")
    return data


def _byte(stream: BinaryIO) -> int:
    return _bytes(stream, 1)[0]


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = _byte(stream)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a header has a number of more than 64 bits")


def _zigzag(stream: BinaryIO) -> int:
    value = _varint(stream)
    return (value >> 1) ^ -(value & 1)
