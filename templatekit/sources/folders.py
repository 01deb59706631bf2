"""Reads several data files of one format as one data set: the files of a folder, or those that match a pattern."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePath
from typing import ClassVar

from templatekit.errors import RecordError, SourceError
from templatekit.sources import arrow_records, csv_records, json_records
from templatekit.sources.datasets_records import is_saved
from templatekit.sources.files import FileSource, exists, extension, is_folder, read_error, suggest_paths, to_path
from templatekit.sources.limits import LimitedSource
from templatekit.types import Record

READERS: dict[str, type[FileSource]] = {
    **dict.fromkeys(json_records.EXTENSIONS, json_records.JsonSource),
    **dict.fromkeys(arrow_records.EXTENSIONS, arrow_records.ArrowSource),
    **dict.fromkeys(csv_records.EXTENSIONS, csv_records.CsvSource),
}
"""The reader of each file extension. The reader of JSON reads files without an extension, too."""

_PATTERN = re.compile(r"[*?\[]")


class FolderSource(LimitedSource):
    """A folder whose data files are all of one format; other files, hidden files and subfolders are ignored."""

    name: ClassVar[str] = "folder"
    description: ClassVar[str] = "A folder of JSON, CSV, Parquet or Arrow files, read in the order of their names."

    def accepts(self, address: str) -> bool:
        """Whether the address is a folder that `save_to_disk` did not make."""
        path = to_path(address)
        return is_folder(path) and not is_saved(path)

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The rows of each file in turn. An error names the file, and the index of the row in that file."""
        files = self.files(address)
        reader = common_reader(address, files).limited(self.limits)
        for file in files:
            yield from reader.read(str(file))

    def files(self, address: str) -> list[Path]:
        """The data files, sorted by name."""
        folder = to_path(address)
        try:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
        except OSError as error:
            raise read_error(address, error) from error
        files = [entry for entry in entries if extension(entry) in READERS and not is_folder(entry)]
        if not files:
            found = ", ".join(entry.name + "/" * is_folder(entry) for entry in entries[:8]) or "an empty folder"
            raise SourceError(
                f"{address}: no data files; found {found}; expected files that end in {', '.join(READERS)}"
            )
        return files


class GlobSource(FolderSource):
    """The files that match a pattern, all of one format: `data/*.jsonl.gz`, or `data/**/*.parquet` with subfolders."""

    name: ClassVar[str] = "glob"
    description: ClassVar[str] = "A quoted pattern of files, as 'data/*.jsonl.gz', read in the order of their names."

    def accepts(self, address: str) -> bool:
        """Whether the address contains `*`, `?` or `[`, and is not the name of a file."""
        return is_glob(address) and "\0" not in address and not exists(to_path(address))

    def files(self, address: str) -> list[Path]:
        """The files that match the pattern now, sorted by name."""
        import glob

        try:
            found = sorted(glob.glob(str(to_path(address)), recursive=True))  # noqa: PTH207 - Path.glob takes no root
        except (OSError, re.error) as error:
            raise SourceError(f"{address}: not a valid pattern of files: {error}") from None
        files = [path for path in map(Path, found) if not is_folder(path)]
        if not files:
            raise SourceError(f"{address}: no file matches; {_suggest_files(address)}")
        return files


def is_glob(address: str) -> bool:
    """Whether an address contains a wildcard."""
    return _PATTERN.search(address) is not None


def common_reader(address: str, files: Sequence[PurePath]) -> FileSource:
    """The one reader of all files; raises `SourceError` if they have several formats."""
    kinds = {READERS.get(extension(file), json_records.JsonSource) for file in files}
    if len(kinds) != 1:
        names = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(map(extension, files)).items()))
        raise SourceError(
            f"{address}: several formats of data files; found {names}; expected one; name one file, or use a "
            "folder for each format"
        )
    return kinds.pop()()


def _suggest_files(address: str) -> str:
    """A hint for a pattern without matches: the names in the folder that precedes its first wildcard."""
    fixed = takewhile(lambda part: not is_glob(part), to_path(address).parts)
    return suggest_paths(str(Path(*fixed, "*")))
