"""Reads the headers of Arrow's messages, which say how large a compressed batch becomes before it is decompressed.

Arrow decompresses a batch as a whole, and pyarrow does not say what it becomes. Headers are tables of FlatBuffers; of
these, only what is needed is parsed here. Each compressed buffer begins with its size after decompression.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_CONTINUATION = b"\xff\xff\xff\xff"
_DICTIONARY, _BATCH = 2, 3
_UNCOMPRESSED = -1


class Block(NamedTuple):
    """Where a message lies in a file."""

    offset: int
    header_size: int
    """With the bytes before the header."""


class Message(NamedTuple):
    """What the header of a message says."""

    is_batch: bool
    """Whether it has rows."""
    unpacked: int
    """Bytes of its buffers after decompression; 0 where it is not compressed."""
    size: int
    """The same, or of those that are not compressed."""
    end: int
    """The offset after it."""


class _Table:
    """A table of FlatBuffers: numbered fields at offsets that its first bytes lead to."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._vtable = position - self._number("<i", position)

    def _number(self, kind: str, position: int) -> int:
        if position < 0:
            raise ValueError("the header of a message is damaged")
        number: int = struct.unpack_from(kind, self._data, position)[0]
        return number

    def _field(self, index: int) -> int | None:
        entry = 4 + 2 * index
        offset = self._number("<H", self._vtable + entry) if entry < self._number("<H", self._vtable) else 0
        return self._position + offset if offset else None

    def number(self, index: int, kind: str) -> int:
        """The number in a field; 0 where it has none."""
        position = self._field(index)
        return 0 if position is None else self._number(kind, position)

    def table(self, index: int) -> _Table | None:
        """The table in a field."""
        position = self._field(index)
        return None if position is None else _Table(self._data, position + self._number("<I", position))

    def pairs(self, index: int, kind: str) -> Iterator[tuple[int, int]]:
        """The first two numbers of each struct in a list of them."""
        position = self._field(index)
        if position is None:
            return
        start = position + self._number("<I", position)
        size = struct.calcsize(kind)
        for number in range(self._number("<I", start)):
            first, second, *_ = struct.unpack_from(kind, self._data, start + 4 + number * size)
            yield first, second


def _root(data: bytes) -> _Table:
    return _Table(data, struct.unpack_from("<I", data)[0])


class Blocks(NamedTuple):
    """Where the messages of a file lie, as its footer says."""

    dictionaries: list[Block]
    batches: list[Block]


def blocks_of(file: BinaryIO) -> Blocks:
    """The blocks of a file that is no stream; raises `ValueError` for a damaged footer."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 10))
    length = int.from_bytes(file.read(4), "little", signed=True)
    if not 0 < length <= size - 10:
        raise ValueError("the footer is damaged")
    file.seek(size - 10 - length)
    try:
        footer = _root(file.read(length))
        return Blocks(*([Block(*pair) for pair in footer.pairs(index, "<qi4xq")] for index in (2, 3)))
    except struct.error as error:
        raise ValueError(f"the footer is damaged: {error}") from None


def message_at(file: BinaryIO, offset: int) -> Message | None:
    """The message at an offset of a file; None at the end. Raises `ValueError` for a damaged one."""
    file.seek(offset)
    prefix = file.read(8)
    start = offset + 8
    if prefix[:4] == _CONTINUATION:
        prefix = prefix[4:]
    else:  # as Arrow wrote before 0.15
        start = offset + 4
    length = int.from_bytes(prefix[:4], "little", signed=True)
    if length <= 0:
        return None
    file.seek(start)
    try:
        message = _root(file.read(length))
        body = start + length
        end = body + message.number(3, "<q")
        kind, header = message.number(1, "<B"), message.table(2)
        data = header.table(1) if kind == _DICTIONARY and header is not None else header
        unpacked = 0
        if kind in (_DICTIONARY, _BATCH) and data is not None and data.table(3) is not None:
            for at, packed in data.pairs(2, "<qq"):
                unpacked += _unpacked(file, body + at, packed)
    except struct.error as error:
        raise ValueError(f"the header of a message at byte {offset} is damaged: {error}") from None
    if end < body:
        raise ValueError(f"the header of a message at byte {offset} is damaged")
    return Message(kind == _BATCH, unpacked, unpacked or end - body, end)


def _unpacked(file: BinaryIO, offset: int, packed: int) -> int:
    if packed < 8:
        return 0
    file.seek(max(0, offset))
    size = int.from_bytes(file.read(8), "little", signed=True)
    return packed if size == _UNCOMPRESSED else max(0, size)
