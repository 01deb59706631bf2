"""Reads the data at a URL, through fsspec: `s3://bucket/rows.jsonl.gz`, `https://…`, `memory://…`.

The files of fsspec resemble files of Python, but lack parts of their interface (`readline` with a limit, `read1`). So
each is read through a buffer of Python's own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, cast

from templatekit.config.addresses import is_url
from templatekit.errors import RecordError, SourceError, nearest, shorten
from templatekit.sources.compression import decompressed, make_rewindable
from templatekit.sources.files import extension
from templatekit.sources.folders import READERS, common_reader, is_glob
from templatekit.sources.limits import LimitedSource
from templatekit.types import Record

_WEB = ("http", "https")
_SECONDS = 60
"""How long a web server may stay silent."""
_BUFFER = 1 << 18
_LOCAL = ("file", "local")
"""The protocols of this machine's own files."""


class RemoteSource(LimitedSource):
    """A file, a folder or a pattern of files on any file system of fsspec.

    Most protocols (`s3`, `gs`, `https`, …) need a package of their own, which fsspec names.
    """

    name: ClassVar[str] = "remote"
    description: ClassVar[str] = "A URL that fsspec reads: s3://…, gs://…, https://…; a file, a folder or a pattern."

    def accepts(self, address: str) -> bool:
        """Whether the address starts with a protocol, like `s3://`."""
        return is_url(address)

    def files(self, address: str) -> list[Path] | None:
        """The files of `file://…`, or the local file that ends a chain (`zip://rows.jsonl::rows.zip`); else None."""
        last = address.rpartition("::")[2]
        if "://" in last and last.partition("://")[0] not in _LOCAL:
            return None
        filesystem, path = _filesystem(last)
        with _errors_translated(address):
            return [Path(file) for file in _files(filesystem, path, address)]

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The rows, streamed. An error names the file, and the index of the row in that file."""
        filesystem, path = _filesystem(address)
        with _errors_translated(address):
            files = _files(filesystem, path, address)
        reader = common_reader(address, [_name(file) for file in files]).limited(self.limits)
        for file in files:
            where = address if file == path else filesystem.unstrip_protocol(file)
            with _errors_translated(where), _open(filesystem, file) as raw, decompressed(raw, where) as stream:
                yield from reader.read_stream(stream, where)


def _filesystem(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs
    from fsspec.registry import available_protocols

    protocol = address.partition("://")[0]
    try:
        options = {"client_kwargs": {"timeout": _timeout()}} if protocol in _WEB else {}
        filesystem, path = url_to_fs(address, **options)
    except ImportError as error:
        raise SourceError(
            f"{address}: reading {protocol}:// needs a package that is not installed; fsspec says: {error}"
        ) from error
    except Exception as error:  # each file system's client has errors of its own
        if isinstance(error, ValueError) and protocol not in available_protocols():
            raise SourceError(
                f"{address}: no protocol named {protocol!r}; {nearest(protocol, available_protocols())}"
            ) from error
        raise _read_error(address, error) from error
    return filesystem, path


def _files(filesystem: Any, path: str, address: str) -> list[str]:
    # In a web address, `?` and `[` are part of a name.
    if is_glob(path) and not ("://" in path and "*" not in path):
        found = [name for name in sorted(filesystem.glob(path)) if not filesystem.isdir(name)]
        if not found:
            raise SourceError(f"{address}: no file there matches")
        return found
    if "://" in path or not filesystem.isdir(path):
        return [path]
    names = sorted(entry["name"] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file")
    paths = [PurePosixPath(name) for name in names]
    pairs = zip(names, paths, strict=True)
    files = [name for name, path in pairs if extension(path) in READERS and not path.name.startswith((".", "_"))]
    if not files:
        others = ", ".join(path.name for path in paths[:8]) or "no files"
        raise SourceError(f"{address}: no data files; found {others}; expected files that end in {', '.join(READERS)}")
    return files


def _name(path: str) -> PurePosixPath:
    """The path, without the query of a web address."""
    return PurePosixPath(path.partition("?")[0] if "://" in path else path)


def _timeout() -> Any:
    """No bound on the whole time, unlike the client's default of five minutes: rows are read as they are needed."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)


class _Seekable(io.RawIOBase):
    """A file of fsspec with the interface that `io.BufferedReader` needs."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return int(self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)


@contextmanager
def _open(filesystem: Any, path: str) -> Iterator[BinaryIO]:
    with filesystem.open(path, "rb") as file:
        if isinstance(file, io.BufferedIOBase):  # a file of Python, such as those of memory://
            yield cast("BinaryIO", file)
            return
        if _sends_parts(file):
            yield cast("BinaryIO", io.BufferedReader(_Seekable(file), _BUFFER))
            return
    # A web server that cannot send a part of a file sends all of it, from start to end.
    options = {"block_size": 0} if _is_web_file(file) else {}
    with filesystem.open(path, "rb", **options) as file:
        yield make_rewindable(file)


def _sends_parts(file: Any) -> bool:
    """Whether reading may start anywhere in a file. A web server shows that only if it is asked for a part."""
    if not file.seekable() or getattr(file, "size", 0) is None:
        return False
    if not _is_web_file(file):
        return True
    try:
        file.seek(file.size - 1)
        file.read(1)
        file.seek(0)
    except Exception:  # reading the whole file shows any other error
        return False
    return True


def _is_web_file(file: Any) -> bool:
    protocol = getattr(getattr(file, "fs", None), "protocol", "")
    return bool({protocol} & {*_WEB} if isinstance(protocol, str) else {*protocol} & {*_WEB})


@contextmanager
def _errors_translated(address: str) -> Iterator[None]:
    """Turn any error of a file system's client into a `SourceError`."""
    try:
        yield
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{address}: no such file or folder there; check the name") from error
    except Exception as error:
        raise _read_error(address, error) from error


def _read_error(address: str, error: Exception) -> SourceError:
    said = shorten(str(error), 200)
    return SourceError(
        f"{address}: cannot be read; found {type(error).__name__}: {said}; check the address, your access and the "
        "network"
    )
