"""Reads CSV and TSV files with a header; every value is text, exactly as it is in the file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, ClassVar

from templatekit.errors import RecordError, SourceError, shorten
from templatekit.sources.compression import stop_rewinding
from templatekit.sources.files import FileSource, check_column_names, extension, is_folder, require_records, to_path
from templatekit.sources.magic import skip_bom
from templatekit.types import Record

EXTENSIONS = (".csv", ".tsv")
"""The extensions of CSV files; the extension of a compression may follow each."""

_LONGEST_CELL = 1 << 28
"""In characters. The csv module's default is 131,072; some bound is needed, since a quote may never be closed."""


class CsvSource(FileSource):
    """CSV (RFC 4180) and TSV files with a header. Types are not inferred: numbers and dates stay text."""

    name: ClassVar[str] = "csv"
    description: ClassVar[str] = "A CSV or TSV file with a header, plain or compressed; every value is text."

    def accepts(self, address: str) -> bool:
        """Whether the file extension is `.csv` or `.tsv`, before that of a compression."""
        path = to_path(address)
        return extension(path) in EXTENSIONS and not is_folder(path)

    def read_stream(self, stream: BinaryIO, address: str) -> Iterator[Record | RecordError]:
        """The rows, with the header's names as keys; blank lines are no rows."""
        skip_bom(stream, address, "CSV")
        stop_rewinding(stream)
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        try:
            delimiter = "\t" if extension(Path(address)) == ".tsv" else ","
            yield from require_records(_rows(text, address, delimiter), address)
        finally:
            text.detach()  # whoever opened the stream closes it


def _rows(text: io.TextIOWrapper, address: str, delimiter: str) -> Iterator[Record | RecordError]:
    first = text.readline()
    while first and not first.strip():
        first = text.readline()
    if delimiter == "," and "," not in first:  # spreadsheets write other delimiters where the comma is the decimal mark
        delimiter = next((other for other in (";", "\t") if other in first), ",")
    csv.field_size_limit(_LONGEST_CELL)
    # Not a generator with `yield from text`: closing that would close the file as well.
    reader = csv.reader(chain((first,), text), delimiter=delimiter, strict=True)
    header = _header(reader, address)
    begin = reader.line_num + 1
    row = 0
    while True:
        try:
            cells = next(reader, None)
            if cells is None:
                return
            record = _record(cells, header) if cells else None
        except csv.Error as error:
            record = _broken(error)
        if isinstance(record, RecordError):
            record.message = f"line {begin}: {record.message}"
            record.at(address, row)
        if record is not None:
            yield record
            row += 1
        begin = reader.line_num + 1


def _header(reader: Iterator[list[str]], address: str) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise SourceError(f"{address}: the header is broken; found {error}; expected the columns' names") from None
    if not header:
        raise SourceError(f"{address}: no records; found an empty file; expected a header and rows")
    check_column_names(header, address)
    for name in header:
        if not _is_text(name):
            raise SourceError(f"{address}: the header is not UTF-8; found {name!r}; {_CONVERT}")
    return header


_CONVERT = "convert the file: iconv -f WINDOWS-1252 -t UTF-8, or whatever its encoding is"


def _record(cells: list[str], header: list[str]) -> Record | RecordError:
    if len(cells) != len(header):
        names = ", ".join(header[:8]) + (", …" if len(header) > 8 else "")
        return RecordError(
            f"found {len(cells)} values, the last {shorten(cells[-1])}; expected {len(header)}: {names}; put a value "
            "that holds a comma or a line break in quotes",
            reason="wrong_columns",
        )
    for name, cell in zip(header, cells, strict=True):
        if not cell.isascii() and not _is_text(cell):
            return RecordError(f"not UTF-8; found {cell[:60]!r}; {_CONVERT}", field=name, reason="bad_encoding")
    return dict(zip(header, cells, strict=True))


def _is_text(value: str) -> bool:
    """Whether every byte was UTF-8; the others were decoded to lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _broken(error: csv.Error) -> RecordError:
    said = str(error)
    if "unexpected end" in said:
        return RecordError(
            "not whole; found the end of the file within quotes (was the file cut short, or a quote left open?); "
            "expected a closing quote",
            reason="truncated",
        )
    return RecordError(
        f"not CSV; found {said}; expected each quote within a value to be doubled, and the value in quotes",
        reason="invalid_csv",
    )
