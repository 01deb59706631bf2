"""Reads the headers of Parquet's pages, which say how large a page becomes before Arrow decompresses it.

Arrow decodes a page as a whole, and as many rows as are asked for: a file of a megabyte may fill the memory with one
page, or with one text that a dictionary repeats in each row. pyarrow does not show these headers. They are structs of
Thrift's compact protocol; of these, only what is needed is parsed here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

_HEADER_BYTES = 1 << 16
_DICTIONARY = 2


class Page(NamedTuple):
    """What the header of a page says."""

    is_dictionary: bool
    size: int
    """Bytes after decompression."""


def pages_of(file: BinaryIO, column: Any) -> Iterator[Page]:
    """The pages of one column of a row group, given with its metadata; raises `ValueError` for a damaged header."""
    offset = column.dictionary_page_offset if column.has_dictionary_page else None
    offset = offset or column.data_page_offset  # some writers give 0 for none
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


def _parse_struct(stream: BinaryIO, depth: int = 0) -> dict[int, int | None]:
    """The integer fields of a struct by their number; other fields are None."""
    fields: dict[int, int | None] = {}
    number = 0
    while True:
        byte = _byte(stream)
        if not byte:
            return fields
        delta, kind = byte >> 4, byte & 15
        number = number + delta if delta else _zigzag(stream)
        fields[number] = _parse_value(stream, kind, depth)


def _parse_value(stream: BinaryIO, kind: int, depth: int, *, in_list: bool = False) -> int | None:
    if depth > 8:
        raise ValueError("the header of a page is nested too deeply")
    if kind in (1, 2):  # true and false, which have a byte of their own only in lists
        return _byte(stream) if in_list else None
    if kind == 3:
        return _byte(stream)
    if kind in (4, 5, 6):
        return _zigzag(stream)
    if kind == 7:
        stream.read(8)
    elif kind == 8:
        stream.seek(_varint(stream), io.SEEK_CUR)
    elif kind in (9, 10):
        byte = _byte(stream)
        for _ in range(_varint(stream) if byte >> 4 == 15 else byte >> 4):
            _parse_value(stream, byte & 15, depth + 1, in_list=True)
    elif kind == 12:
        _parse_struct(stream, depth + 1)
    else:
        raise ValueError(f"the header of a page has a field of the unknown type {kind}")
    return None


def _byte(stream: BinaryIO) -> int:
    data = stream.read(1)
    if not data:
        raise ValueError("the header of a page is cut or too long")
    return data[0]


def _varint(stream: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = _byte(stream)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def _zigzag(stream: BinaryIO) -> int:
    value = _varint(stream)
    return (value >> 1) ^ -(value & 1)
