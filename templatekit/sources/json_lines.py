"""Reads JSON Lines, one object a line, in constant memory; a broken line costs that line alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from json import JSONDecodeError
from typing import BinaryIO, NamedTuple

from templatekit.errors import RecordError
from templatekit.sources.json_decoder import (
    WHITESPACE,
    Decoder,
    explain,
    has_too_many_values,
    record_error,
    too_many_values,
)
from templatekit.sources.limits import DEFAULT_LIMITS, Limits, check_blank, no_next_row, sized, too_large
from templatekit.types import Record

_PIECE = 1 << 20


def read_lines(stream: BinaryIO, address: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[Record | RecordError]:
    """The rows of JSON Lines. Only `\\n` and `\\r\\n` end a line; blank lines are no rows."""
    decoder = Decoder()
    offset = row = blank = 0
    longest, large = limits.record + 2, limits.large  # with the end of the line
    for number, line in enumerate(iter(partial(stream.readline, longest), b""), 1):
        size = len(line)
        if line.isspace():
            blank += size
            check_blank(blank, address, limits)
        else:
            if size <= limits.record or len(line.rstrip(b"\r\n")) <= limits.record:
                record = _record(decoder, line, offset)
            else:
                if not line.endswith(b"\n"):
                    rest = _skip_line(stream, address, row, limits)
                    size, line = size + rest.size, (line[-2:] + rest.end)[-2:]
                record = too_large(size - len(line) + len(line.rstrip(b"\r\n")), limits)
            if isinstance(record, RecordError):
                record.message = f"line {number}: {record.message}"
                record.at(address, row)
            elif size > large:
                record = sized(record, size, limits)
            yield record
            row += 1
            blank = 0
        offset += size


class _Rest(NamedTuple):
    """The rest of a line that was skipped."""

    size: int
    end: bytes
    """Its last bytes."""


def _skip_line(stream: BinaryIO, address: str, row: int, limits: Limits) -> _Rest:
    """Read the rest of a line without keeping it."""
    size, end = 0, b""
    for piece in iter(partial(stream.readline, _PIECE), b""):
        size += len(piece)
        end = (end + piece)[-2:]
        if piece.endswith(b"\n"):
            break
        if size > limits.skipped:
            raise no_next_row(address, row, size, "without the end of a line")
    return _Rest(size, end)


def _record(decoder: Decoder, line: bytes, offset: int) -> Record | RecordError:
    last = not line.endswith(b"\n")
    if has_too_many_values(line):
        return too_many_values()
    try:
        text = line.decode().rstrip(WHITESPACE)
        # Concatenated files have a byte order mark in their middle.
        begin = len(text) - len(text.removeprefix("\ufeff").lstrip(WHITESPACE))
        value, end, needs_check = decoder.decode(text, begin)
        if end != len(text):
            raise JSONDecodeError("Extra data", text, len(text) - len(text[end:].lstrip(WHITESPACE)))
        record: Record = value
        return record_error(value, needs_check) or record
    except UnicodeDecodeError as wrong:
        if last and wrong.reason == "unexpected end of data":
            return _truncated(last)
        return RecordError(
            f"not UTF-8; found byte 0x{line[wrong.start]:02x} at byte {offset + wrong.start} of the file; expected "
            "UTF-8; convert the file: iconv -f WINDOWS-1252 -t UTF-8, or whatever its encoding is",
            reason="bad_encoding",
        )
    except JSONDecodeError as wrong:
        reason, message = explain(wrong)
        if reason == "truncated":
            return _truncated(last)
        return RecordError(f"not JSON at column {wrong.pos + 1}; {message}", reason=reason)


def _truncated(last: bool) -> RecordError:
    found = "the end of the file" if last else "the end of the line"
    hint = " (was the file cut short?)" if last else ""
    return RecordError(
        f"not whole; found {found} in the middle of a value{hint}; expected a whole object on one line",
        reason="truncated",
    )
