"""Opens local files: only regular files, decompressed if their first bytes say so, with helpful errors."""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import BinaryIO, TypeVar

from templatekit.config.addresses import is_url
from templatekit.errors import RecordError, SourceError
from templatekit.sources.compression import SUFFIXES, decompressed
from templatekit.sources.limits import LimitedSource
from templatekit.types import Record

T = TypeVar("T")
_NAMES_LISTED = 8
_KINDS = {"d": "a folder", "p": "a pipe (FIFO)", "s": "a socket", "c": "a device", "b": "a device"}
"""What an address names that is no regular file, by the first letter of `stat.filemode`."""


def to_path(address: str) -> Path:
    """The address as a path, with `~` expanded if that user exists; that of a URL without its query."""
    if is_url(address):
        return Path(address.partition("?")[0])
    try:
        return Path(address).expanduser()
    except RuntimeError:
        return Path(address)


def exists(path: Path) -> bool:
    """Whether `path` exists; False as well for text that cannot be a path."""
    return os.path.exists(path)  # noqa: PTH110 - `Path.exists` raises for such text


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False as well for text that cannot be a path."""
    return os.path.isdir(path)  # noqa: PTH112


def extension(path: PurePath) -> str:
    """The last suffix in lower case, without that of a compression: `.jsonl` for `x.JSONL.gz`."""
    name = PurePath(path.name.lower())
    return (name.with_suffix("") if name.suffix in SUFFIXES else name).suffix


def find_file(address: str) -> Path:
    """The regular file at `address`; raises `SourceError` for anything else: a pipe or a device might never end."""
    path = to_path(address)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise read_error(address, error) from None
    if not stat.S_ISREG(mode):
        found = _KINDS.get(stat.filemode(mode)[0], "something else")
        raise SourceError(f"{address}: not a regular file; found {found}; save its data to a file and name that")
    return path


class FileSource(LimitedSource):
    """A source of one file format, whose rows can be read from a stream as well."""

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The rows of the file at `address`."""
        path = find_file(address)
        try:
            with path.open("rb") as file, decompressed(file, address) as stream:
                yield from self.read_stream(stream, address)
        except OSError as error:
            raise read_error(address, error) from error

    def files(self, address: str) -> Sequence[Path] | None:
        """The one file."""
        return [find_file(address)]

    @abstractmethod
    def read_stream(self, stream: BinaryIO, address: str) -> Iterator[Record | RecordError]:
        """The rows of a stream that can be rewound until `stop_rewinding`; `address` names it in errors."""


def read_error(address: str, error: Exception) -> SourceError:
    """The error that says why `address` cannot be read."""
    path = to_path(address)
    if isinstance(error, PermissionError):
        return SourceError(f"{address}: no permission to read it; allow it (chmod), or copy the file")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        what = "a link whose file is missing" if path.is_symlink() else "no such file or folder"
        return SourceError(f"{address}: {what}; {suggest_paths(address)}")
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SourceError(f"{address}: cannot be read: {words}")


def suggest_paths(address: str) -> str:
    """A hint for a misspelt path: the closest names in its folder, or the first ones."""
    folder, name = to_path(address).parent, to_path(address).name
    if not is_folder(folder):
        return f"its folder {str(folder)!r} does not exist"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"its folder {str(folder)!r} cannot be listed: {error.strerror}"
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(str(folder / match)) for match in close)}?"
    more = f" and {len(names) - _NAMES_LISTED} more" if len(names) > _NAMES_LISTED else ""
    return f"folder {str(folder)!r} holds {', '.join(names[:_NAMES_LISTED]) or 'nothing'}{more}"


def require_records(items: Iterator[T], address: str) -> Iterator[T]:
    """The same items; raises `SourceError` if there are none."""
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise SourceError(f"{address}: no records; found an empty data set; expected at least one row")


def check_column_names(names: Iterable[str], address: str) -> None:
    """Raise `SourceError` if two columns have the same name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SourceError(f"{address}: two columns are named {twice[0]!r}; expected each name once; rename one")
