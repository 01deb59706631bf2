"""Decompresses gzip, zstd, bzip2 and xz streams. The first bytes decide the format, not the file extension.

A file may hold several streams (members, frames), one after the other, as `cat a.gz b.gz` writes them: their data
follow each other. Each of them must be whole. Zero bytes may pad gzip members, and xz streams in multiples of four, as
with their own tools. Anything else after a stream is an error. `gzip` and `bzip2` would warn and ignore it; but it may
be a damaged stream, whose rows would be lost.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from templatekit.errors import SourceError

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""The extensions of compressed files; one may follow the extension of the data."""

_HEAD = 6
_CHUNK = 1 << 16
_XZ_MEMORY = 1 << 28
"""Bytes that decoding may take. `xz -9` needs a quarter; a header may ask for gigabytes."""


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


class _Decoder(Protocol):
    """Unpacks one stream; the decoders of `bz2` and `lzma` are such."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    """Unpacks one gzip member, and checks its header, checksum and length."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        unpacked = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # Output of the full length may not be all that the input gives, even if all of it was consumed.
        self.needs_input = not self._zlib.unconsumed_tail and len(unpacked) < max_length
        return unpacked


class _Streams:
    """The unpacked bytes of a file's streams, one after the other.

    `gzip`, `bz2` and `lzma` of the standard library are not used for this: the last two take a damaged later stream for
    the end of the file, so that its rows would be lost in silence.
    """

    def __init__(self, file: BinaryIO, codec: _Codec) -> None:
        self._file, self._codec = file, codec
        self._read = getattr(file, "read1", file.read)
        self._decoder: _Decoder | None = codec.new_decoder()
        self._packed = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Raises `EOFError`, or the codec's error."""
        while True:
            if self._decoder is None and not self._start_next():
                return b""
            decoder = self._decoder
            assert decoder is not None
            if decoder.needs_input and not self._packed:
                self._packed = self._read(_CHUNK)
                if not self._packed:
                    raise EOFError
            packed, self._packed = self._packed, b""
            data = decoder.decompress(packed, size)
            if decoder.eof:
                self._packed, self._decoder = decoder.unused_data, None
            if data:
                return data

    def _start_next(self) -> bool:
        """Start the next stream, after the padding that the format allows; False at the end of the file."""
        padding = 0
        while self._codec.padding:
            stripped = self._packed.lstrip(b"\0")
            padding += len(self._packed) - len(stripped)
            self._packed = stripped or self._read(_CHUNK)
            if stripped or not self._packed:
                break
        if self._codec.padding and padding % self._codec.padding:
            raise OSError(f"{padding} zero bytes after a stream, which pad by multiples of {self._codec.padding}")
        self._packed = self._packed or self._read(_CHUNK)
        if self._packed:
            self._decoder = self._codec.new_decoder()
        return bool(self._packed)


class _Codec(NamedTuple):
    name: str
    magic: bytes
    suffix: str
    padding: int = 0
    """Zero bytes may follow a stream, in multiples of this; 0 where none may."""

    def new_decoder(self) -> _Decoder:
        if self.name == "gzip":
            return _GzipDecoder()
        if self.name == "bzip2":
            import bz2

            return bz2.BZ2Decompressor()
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def open(self, file: BinaryIO) -> BinaryIO:
        if self.name != "zstd":
            return make_rewindable(_Streams(file, self))
        import pyarrow as pa  # zstd is in the standard library only since Python 3.14

        return make_rewindable(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))


_CODECS = (
    _Codec("gzip", b"\x1f\x8b", ".gz", padding=1),
    _Codec("zstd", b"\x28\xb5\x2f\xfd", ".zst"),
    _Codec("zstd", b"\x50\x2a\x4d\x18", ".zst"),  # a skippable frame: `pzstd` begins with one
    _Codec("bzip2", b"BZh", ".bz2"),
    _Codec("xz", b"\xfd7zXZ\x00", ".xz", padding=4),
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
    stop_rewinding(file)
    try:
        with codec.open(file) as stream:
            yield stream
    except Exception as error:
        # The module of LZMAError is loaded for xz only.
        from_codec = isinstance(error, (EOFError, OSError, zlib.error)) or type(error).__name__ == "LZMAError"
        # An error of the operating system has a number; an error in the data has none.
        if not from_codec or getattr(error, "errno", None) is not None:
            raise
        early = isinstance(error, EOFError) or "Truncated" in str(error)
        raise SourceError(
            f"{address}: damaged {codec.name} data; found {'an early end' if early else error}; expected a complete "
            f"{codec.suffix} file, with nothing after it but more streams; fetch or write it again"
        ) from error
