"""Reads JSON Lines, one object a line, in constant memory; a broken line costs that line alone."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from typing import BinaryIO

from templatekit.errors import RecordError
from templatekit.sources.json_decoder import WHITESPACE, Decoder, explain, record_error
from templatekit.types import Record


def read_lines(stream: BinaryIO, address: str) -> Iterator[Record | RecordError]:
    """The rows of JSON Lines. Only `\\n` and `\\r\\n` end a line; blank lines are no rows."""
    decoder = Decoder()
    offset = row = 0
    for number, line in enumerate(stream, 1):
        if not line.isspace():
            record = _record(decoder, line, offset)
            if isinstance(record, RecordError):
                record.message = f"line {number}: {record.message}"
                record.at(address, row)
            yield record
            row += 1
        offset += len(line)


def _record(decoder: Decoder, line: bytes, offset: int) -> Record | RecordError:
    last = not line.endswith(b"\n")
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
