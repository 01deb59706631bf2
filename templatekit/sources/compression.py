"""Decompresses gzip, zstd, bzip2 and xz streams. The first bytes decide the format, not the file extension."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, BinaryIO, NamedTuple, cast

from templatekit.errors import SourceError

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""The extensions of compressed files; one may follow the extension of the data."""

_HEAD = 6
_CHUNK = 1 << 16


class Rewindable(io.RawIOBase):
    """A stream that cannot seek, with its beginning buffered until `stop_rewinding`, so that it can be read twice."""

    def __init__(self, stream: Any) -> None:
        # read1 returns the bytes that have arrived: the first rows of a slow pipe need not wait for the last.
        self._read = getattr(stream, "read1", stream.read)
        self._buffer: bytearray | None = bytearray()
        self._position = 0
        self._buffering = True

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: back to anything that was read before `stop_rewinding`."""
        return True

    def stop_rewinding(self) -> None:
        """Buffer nothing more; the buffer is read once more and then dropped."""
        self._buffering = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset that has been read; raise `OSError` for any other."""
        target = offset if whence == io.SEEK_SET else self._position + offset
        known = target == self._position if self._buffer is None else 0 <= target <= len(self._buffer)
        if whence == io.SEEK_END or not known:
            raise io.UnsupportedOperation("only what was read before can be read again")
        self._position = target
        return target

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the bytes read before, then from the stream."""
        view = memoryview(buffer).cast("B")
        again = b"" if self._buffer is None else self._buffer[self._position : self._position + len(view)]
        if again:
            view[: len(again)] = again
            self._position += len(again)
            return len(again)
        if not self._buffering:
            self._buffer = None
        data = self._read(len(view)) or b""
        view[: len(data)] = data
        self._position += len(data)
        if self._buffer is not None:
            self._buffer += data
        return len(data)


def make_rewindable(stream: Any) -> BinaryIO:
    """The stream, buffered, so that it can return to its beginning until `stop_rewinding`."""
    return cast("BinaryIO", io.BufferedReader(Rewindable(stream), _CHUNK))


def stop_rewinding(stream: BinaryIO) -> None:
    """Declare that a stream will not be rewound again; one that can always seek does not change."""
    raw = getattr(stream, "raw", None)
    if isinstance(raw, Rewindable):
        raw.stop_rewinding()


class _Codec(NamedTuple):
    name: str
    magic: bytes
    suffix: str
    module: str
    """The module of the standard library whose `open` decompresses it."""

    def open(self, file: BinaryIO) -> BinaryIO:
        if self.name == "zstd":  # in the standard library only since Python 3.14
            import pyarrow as pa

            return make_rewindable(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
        return cast("BinaryIO", import_module(self.module).open(file))


_CODECS = (
    _Codec("gzip", b"\x1f\x8b", ".gz", "gzip"),
    _Codec("zstd", b"\x28\xb5\x2f\xfd", ".zst", ""),
    _Codec("bzip2", b"BZh", ".bz2", "bz2"),
    _Codec("xz", b"\xfd7zXZ\x00", ".xz", "lzma"),
)


@contextmanager
def decompressed(file: BinaryIO, address: str) -> Iterator[BinaryIO]:
    """The decompressed bytes of a seekable stream; damaged data raise `SourceError`, other errors pass."""
    head = file.read(_HEAD)
    file.seek(0)
    codec = next((codec for codec in _CODECS if head.startswith(codec.magic)), None)
    if codec is None:
        yield file
        return
    rewindable = isinstance(getattr(file, "raw", None), Rewindable)
    stop_rewinding(file)
    try:
        with codec.open(file) as stream:
            yield make_rewindable(stream) if rewindable else stream
    except Exception as error:
        # The module of LZMAError is loaded for xz only.
        from_codec = isinstance(error, (EOFError, OSError, zlib.error)) or type(error).__name__ == "LZMAError"
        # An error of the operating system has a number; an error in the data has none.
        if not from_codec or getattr(error, "errno", None) is not None:
            raise
        early = isinstance(error, EOFError) or "Truncated" in str(error)
        raise SourceError(
            f"{address}: damaged {codec.name} data; found {'an early end' if early else error}; expected a complete "
            f"{codec.suffix} file; fetch or write it again"
        ) from error
