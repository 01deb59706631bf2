"""Reads CSV and TSV files with a header; every value is text, exactly as it is in the file."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, ClassVar

from templatekit.errors import RecordError, SourceError, shorten
from templatekit.sources.compression import stop_rewinding
from templatekit.sources.files import FileSource, check_column_names, extension, is_folder, require_records, to_path
from templatekit.sources.limits import Limits, check_blank, in_megabytes, no_next_row, sized, too_large
from templatekit.sources.magic import skip_bom
from templatekit.types import Record

EXTENSIONS = (".csv", ".tsv")
"""The extensions of CSV files; the extension of a compression may follow each."""

_CHUNK = 1 << 16
_LONGEST_CELL = 1 << 30
"""In characters, for the csv module, whose default is 131,072. The limit of a record is smaller."""


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
        delimiter = "\t" if extension(to_path(address)) == ".tsv" else ","
        yield from require_records(_rows(_Lines(stream, address, self.limits), address, delimiter), address)


class _RowTooLarge(Exception):
    """A row is larger than the limit, and was not read to its end."""


class _Lines:
    """The lines of a file, as lists of those that end in one chunk of it.

    The csv module asks for more lines until a row is complete. A row that is too large gets no more of them.
    """

    def __init__(self, stream: BinaryIO, address: str, limits: Limits) -> None:
        self.limits = limits
        self.row_begin = 0
        """The index of the line in which the row begins that is read; blank lines before it count as a part of it."""
        self.end = 0
        """The index of the line after those given so far."""
        self.has_large = False
        """Whether a row that ends in the last list may be large."""
        self._address = address
        self._large = min(2 * _CHUNK, limits.record)
        self._read = getattr(stream, "read1", stream.read)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._of_row: list[str] = []
        """The lines given since `row_begin`, and those before it in the same list."""
        self._row_size = 0
        self._rest = ""
        self._ended = False

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        """Raises `_RowTooLarge`, and `SourceError` for blank lines without an end."""
        if (complete := len(self._of_row) - (self.end - self.row_begin)) > 0:
            self._of_row = self._of_row[complete:]
            self._row_size = sum(map(len, self._of_row))
        size = self._row_size
        self._refuse_more_than_a_record(size)
        lines = self._read_lines(size)
        if not lines:
            raise StopIteration
        self._row_size = size + sum(map(len, lines))
        self.has_large = self._row_size > self._large
        self._of_row += lines
        self.end += len(lines)
        return lines

    def _read_lines(self, size: int) -> list[str]:
        """The lines that end in the next chunks of the file, at least one; none at its end."""
        lines: list[str] = []
        while not lines and not self._ended:
            chunks = [self._rest]
            while not self._ended:
                chunks.append(self._next_chunk())
                size += len(chunks[-1])
                if "\n" in chunks[-1] or "\r" in chunks[-1]:
                    break
                if size > self.limits.record:
                    self._rest = "".join(chunks)
                    self._refuse_more_than_a_record(size)
            lines = self._split("".join(chunks))
        return lines

    def _next_chunk(self) -> str:
        data = self._read(min(_CHUNK, self.limits.record))
        self._ended = not data
        return self._utf8.decode(data, final=self._ended)

    def _split(self, text: str) -> list[str]:
        """The lines of a text; the last one is kept back, since it may go on, or end within `\\r\\n`."""
        lines = list(io.StringIO(text, newline=""))
        self._rest = lines.pop() if lines and not self._ended else ""
        return lines

    def _refuse_more_than_a_record(self, size: int) -> None:
        if size > self.limits.record:
            if all(map(str.isspace, (*self._of_row, self._rest or " "))):
                check_blank(size, self._address, self.limits)
            raise _RowTooLarge

    def skip_row(self, row: int) -> int:
        """Read the rest of a row that is too large, without keeping it; return the size of the row.

        It ends with the line in which each quote is closed: after an even number of quotes.
        """
        size, searched = self._row_size, 0
        quotes = sum(line.count('"') for line in self._of_row)
        self._of_row, self._row_size, self.row_begin = [], 0, self.end
        text = self._rest
        while True:
            if quotes % 2 and '"' not in text and text:  # all of it is within quotes
                size += len(text) - 1
                self.end += text.count("\n", 0, -1) + text.count("\r", 0, -1) - text.count("\r\n", 0, -1)
                text = text[-1:]
            lines = self._split(text)
            searched += len(lines)
            for index, line in enumerate(lines):
                size += len(line)
                quotes += line.count('"')
                if quotes % 2 == 0:
                    self._rest = "".join(lines[index + 1 :]) + self._rest
                    self.end += index + 1
                    self.row_begin = self.end
                    return size
            self.end += len(lines)
            self.row_begin = self.end
            if self._ended:
                return size
            # Of the line that goes on, the last character is enough: it may be the first half of "\r\n".
            size += len(self._rest[:-1])
            quotes += self._rest.count('"', 0, len(self._rest[:-1]))
            if size > self.limits.skipped or searched > self.limits.record:
                raise no_next_row(self._address, row, size, "without its end")
            text = self._rest[-1:] + self._next_chunk()


def _rows(lines: _Lines, address: str, delimiter: str) -> Iterator[Record | RecordError]:
    text = chain.from_iterable(lines)
    csv.field_size_limit(_LONGEST_CELL)
    try:
        first, base = next(text, ""), 0
        while first and not first.strip():
            first, base = next(text, ""), base + 1
        if delimiter == "," and "," not in first:  # spreadsheets write others where the comma is the decimal mark
            delimiter = next((other for other in (";", "\t") if other in first), ",")
        # Not a generator with `yield from text`: closing that would close the file as well.
        reader = csv.reader(chain((first,), text), delimiter=delimiter, strict=True)
        header = _header(reader, address)
    except _RowTooLarge:
        raise SourceError(
            f"{address}: the header is too large; found more than {in_megabytes(lines.limits.record)}; expected the "
            "columns' names"
        ) from None
    row = 0
    lines.row_begin = base + reader.line_num
    while True:
        begin = base + reader.line_num + 1
        try:
            cells = next(reader, None)
            if cells is None:
                return
            record = _record(cells, header) if cells else None
            if lines.has_large:
                record = _measured(record, sum(map(len, cells)), lines.limits)
        except csv.Error as error:
            record = _broken(error)
        except _RowTooLarge:
            record = too_large(lines.skip_row(row), lines.limits)
            base = lines.end
            reader = csv.reader(chain.from_iterable(lines), delimiter=delimiter, strict=True)
        if isinstance(record, RecordError):
            record.message = f"line {begin}: {record.message}"
            record.at(address, row)
        if record is not None:
            lines.row_begin = base + reader.line_num
            yield record
            row += 1


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


def _measured(record: Record | RecordError | None, size: int, limits: Limits) -> Record | RecordError | None:
    if size > limits.record:
        return too_large(size, limits)
    return record if record is None or isinstance(record, RecordError) else sized(record, size, limits)


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
