"""Takes gzip, zstd, bzip2 and xz off a stream: told by its first bytes, whatever its name ends in."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from templatekit.errors import SourceError

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""What may stand behind the ending of a compressed file."""

_HEAD = 6
_CHUNK = 1 << 16


class Rewindable(io.RawIOBase):
    """A stream that only goes forward, with its beginning kept until `settle`, so that it can be looked at twice."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._position = 0
        self._settled = False
        self._forgotten = False

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: back to what was read before it was settled."""
        return True

    def stop_rewinding(self) -> None:
        """From here on nothing more is kept: what was is given once more, and forgotten."""
        self._settled = True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place that has been read; raises `OSError` for any other."""
        target = offset if whence == io.SEEK_SET else self._position + offset
        known = target == self._position if self._forgotten else 0 <= target <= len(self._kept)
        if whence == io.SEEK_END or not known:
            raise io.UnsupportedOperation("only what was read before can be read again")
        self._position = target
        return target

    def tell(self) -> int:
        """The number of bytes before the next one."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer from what was kept, then from the stream."""
        view = memoryview(buffer).cast("B")
        again = b"" if self._forgotten else self._kept[self._position : self._position + len(view)]
        if again:
            view[: len(again)] = again
            self._position += len(again)
            return len(again)
        if self._settled and not self._forgotten:
            self._kept, self._forgotten = bytearray(), True
        data = self._stream.read(len(view)) or b""
        view[: len(data)] = data
        self._position += len(data)
        if not self._settled:
            self._kept += data
        return len(data)


def make_rewindable(stream: Any) -> BinaryIO:
    """The stream, buffered, so that it can go back to its beginning until it is settled."""
    return cast("BinaryIO", io.BufferedReader(Rewindable(stream), _CHUNK))


def stop_rewinding(stream: BinaryIO) -> None:
    """Says that a stream will not be read again; one that can always go back is left alone."""
    raw = getattr(stream, "raw", None)
    if isinstance(raw, Rewindable):
        raw.stop_rewinding()


class _Kind(NamedTuple):
    name: str
    magic: bytes
    suffix: str
    open: Callable[[BinaryIO], BinaryIO]


def _gzip(file: BinaryIO) -> BinaryIO:
    import gzip

    return cast("BinaryIO", gzip.open(file))


def _zstd(file: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    return make_rewindable(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))


def _bzip2(file: BinaryIO) -> BinaryIO:
    import bz2

    return cast("BinaryIO", bz2.open(file))


def _xz(file: BinaryIO) -> BinaryIO:
    import lzma

    return cast("BinaryIO", lzma.open(file))


_KINDS = (
    _Kind("gzip", b"\x1f\x8b", ".gz", _gzip),
    _Kind("zstd", b"\x28\xb5\x2f\xfd", ".zst", _zstd),
    _Kind("bzip2", b"BZh", ".bz2", _bzip2),
    _Kind("xz", b"\xfd7zXZ\x00", ".xz", _xz),
)


@contextmanager
def decompressed(file: BinaryIO, address: str) -> Iterator[BinaryIO]:
    """The bytes that a seekable stream holds; damage is a `SourceError`, what reading itself raises stays as it is."""
    head = file.read(_HEAD)
    file.seek(0)
    kind = next((kind for kind in _KINDS if head.startswith(kind.magic)), None)
    if kind is None:
        yield file
        return
    once = isinstance(getattr(file, "raw", None), Rewindable)
    stop_rewinding(file)
    try:
        with kind.open(file) as stream:
            yield make_rewindable(stream) if once else stream
    except (EOFError, OSError, zlib.error) as error:
        # What the system says of a file has a number; what is wrong with the data has none.
        if getattr(error, "errno", None) is not None:
            raise
        raise _damaged(kind, address, error) from error
    except Exception as error:
        if type(error).__name__ != "LZMAError":  # its module is loaded for xz alone
            raise
        raise _damaged(kind, address, error) from error


def _damaged(kind: _Kind, address: str, error: Exception) -> SourceError:
    early = isinstance(error, EOFError) or "Truncated" in str(error)
    return SourceError(
        f"{address}: damaged {kind.name} data; found {'an early end' if early else error}; expected a whole "
        f"{kind.suffix} file; fetch or write it anew"
    )
