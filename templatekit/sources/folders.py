"""Reads a folder of data files as one data set, each file by the reader of its kind, so that no type is guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from templatekit.contracts import Source
from templatekit.errors import RecordError, SourceError
from templatekit.sources import arrow_records, json_records
from templatekit.sources.datasets_records import is_saved
from templatekit.sources.files import ending, is_folder, to_path, unreadable
from templatekit.types import Record

_READERS: dict[str, type[Source]] = {
    **dict.fromkeys(json_records.ENDINGS, json_records.JsonSource),
    **dict.fromkeys(arrow_records.ENDINGS, arrow_records.ArrowSource),
}


class FolderSource(Source):
    """A folder whose data files are all of one kind; other files, hidden ones and subfolders are left alone."""

    name: ClassVar[str] = "folder"
    description: ClassVar[str] = "A folder of JSON, Parquet or Arrow files, read in the order of their names."

    def accepts(self, address: str) -> bool:
        """Whether it is a folder, and not one that `save_to_disk` made."""
        path = to_path(address)
        return is_folder(path) and not is_saved(path)

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The rows of one file after the other. An error names the file that its row is in, and its number there."""
        files = self.files(address)
        reader = _READERS[ending(files[0])]()
        for file in files:
            yield from reader.read(str(file))

    def files(self, address: str) -> list[Path]:
        """The data files, all of one kind."""
        folder = to_path(address)
        try:
            entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
        except OSError as error:
            raise unreadable(address, error) from error
        files = [entry for entry in entries if ending(entry) in _READERS and not is_folder(entry)]
        if len({_READERS[ending(file)] for file in files}) != 1:
            raise _unclear(address, entries, files)
        return files


def _unclear(address: str, entries: list[Path], files: list[Path]) -> SourceError:
    if files:
        names = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(map(ending, files)).items()))
        return SourceError(
            f"{address}: several kinds of data files; found {names}; expected one kind; name one file, or part them"
        )
    found = ", ".join(entry.name + "/" * is_folder(entry) for entry in entries[:8]) or "an empty folder"
    return SourceError(f"{address}: no data files; found {found}; expected files that end in {', '.join(_READERS)}")
