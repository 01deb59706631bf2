"""Reads a JSON list row by row: memory never holds more than one chunk and the largest row."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import BinaryIO, NamedTuple

from templatekit.errors import RecordError, SourceError
from templatekit.sources.json_decoder import (
    TRAILING_COMMA,
    Decoded,
    Decoder,
    explain,
    has_too_many_values,
    record_error,
    too_many_values,
)
from templatekit.sources.limits import DEFAULT_LIMITS, Limits, check_blank, in_megabytes, sized, too_large
from templatekit.types import Record

CHUNK = 1 << 18
"""Bytes read at a time."""

_WHITESPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_LITERAL = 16
"""An error this close to the end of a cut text may come from the cut: `-Infinity`, `\\ud83d\\ude00`, `1.5e-7`."""


class FilePosition(NamedTuple):
    """A line and a column, both counted from 1."""

    line: int
    column: int

    def advanced(self, text: str, end: int) -> FilePosition:
        """The position of `text[end]`, if this is the position of `text[0]`."""
        lines = text.count("\n", 0, end)
        if not lines:
            return FilePosition(self.line, self.column + end)
        return FilePosition(self.line + lines, end - text.rfind("\n", 0, end))


class ValueTooLarge(Exception):
    """A value has more text than is kept in memory."""


class Window:
    """The part of a text that is in memory: from the value being read to the end of the last chunk."""

    def __init__(
        self,
        stream: BinaryIO,
        address: str,
        chunk_size: int = CHUNK,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.address = address
        self.limits = limits
        self.text = ""
        self.index = 0
        """Where in `text` reading goes on."""
        self.value_start = 0
        """Where in `text` the last decoded value begins."""
        self._text_position = FilePosition(1, 1)
        self._stream = stream
        self._chunk_size = chunk_size
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._bytes_read = stream.tell()
        self._ended = False
        self._failure: SourceError | None = None

    def position(self, index: int) -> FilePosition:
        """The position in the file of `text[index]`."""
        return self._text_position.advanced(self.text, index)

    def next_char(self) -> str:
        """Skip white space and return the next character, without skipping it; "" at the end."""
        blank = 0
        while True:
            match = _WHITESPACE.match(self.text, self.index)
            before, self.index = self.index, match.end() if match else self.index
            blank += self.index - before
            check_blank(blank, self.address, self.limits)
            if self.index < len(self.text):
                return self.text[self.index]
            if not self._grow():
                return ""

    def decode(self, decoder: Decoder, largest: int) -> Decoded:
        """Return the value at `index` and move past it; raise `JSONDecodeError` with `text` as its document.

        A value of more text than `largest` may raise `ValueTooLarge`, and so does one of too many objects and lists.
        """
        while True:
            if has_too_many_values(self.text, self.index):
                raise ValueTooLarge(too_many_values().message)
            try:
                decoded = decoder.decode(self.text, self.index)
            except JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + _LONGEST_LITERAL >= len(self.text)
                if self._ended or not cut:
                    raise
                if len(self.text) - self.index > largest:
                    raise ValueTooLarge(
                        f"too large; found more than {in_megabytes(largest)}; to allow more: --max-record-size"
                    ) from None
            else:
                # A number at the very end may continue in the next chunk.
                if self._ended or decoded.end < len(self.text):
                    self.value_start, self.index = self.index, decoded.end
                    return decoded
            self._grow()

    def expect_end(self) -> None:
        """Raise `SourceError` unless only white space is left."""
        if self.next_char():
            line, column = self.position(self.index)
            found = self.text[self.index : self.index + 24]
            raise SourceError(
                f"{self.address}: more text after the end of the JSON value, at line {line}, column {column}; found "
                f"{found!r}; expected one value, or JSON Lines with a whole object on each line"
            )

    def read_all(self, largest: int) -> None:
        """Read the whole rest of the text into memory; raise `ValueTooLarge` if it is more than `largest`."""
        while self._grow():
            if len(self.text) > largest:
                raise ValueTooLarge(
                    f"too large to be read as one value; found more than {in_megabytes(largest)}; expected a list, or "
                    "one object on each line; to allow more: --max-record-size"
                )

    def _grow(self) -> bool:
        """Drop the text before `index` and read on, at least doubling the rest; return False at the end of the file."""
        if self._ended:
            return False
        self._text_position = self.position(self.index)
        chunks = [self.text[self.index :]]
        self.text, self.index = "", 0
        wanted = max(self._chunk_size, len(chunks[0]))
        while wanted > 0 and not self._ended and self._failure is None:
            chunks.append(self._decode_bytes(self._stream.read(wanted)))
            wanted -= len(chunks[-1])
        self.text = "".join(chunks)
        grown = len(self.text) > len(chunks[0])
        if self._failure is not None and not grown:  # not sooner, so that the text before it is read first
            raise self._failure
        return grown

    def _decode_bytes(self, data: bytes) -> str:
        self._ended = not data
        pending = len(self._utf8.getstate()[0])
        try:
            text = self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset = self._bytes_read - pending + error.start
            self._failure = SourceError(
                f"{self.address}: not UTF-8; found byte 0x{error.object[error.start]:02x} at byte {offset} of the "
                "file; expected UTF-8; convert it: iconv -f WINDOWS-1252 -t UTF-8, or whatever its encoding is"
            )
            self._ended = False
            text = error.object[: error.start].decode()
        self._bytes_read += len(data)
        return text


def read_array(window: Window) -> Iterator[Record | RecordError]:
    """The rows of the list that a window starts with.

    Raises `SourceError` for a syntax error: after one, nothing says where the next row begins.
    """
    decoder = Decoder()
    row, large = 0, window.limits.large
    try:
        more = _next_row(window, opening="[")
        while more:
            value, end, needs_check = window.decode(decoder, window.limits.record)
            error = record_error(value, needs_check)
            if (size := end - window.value_start) > window.limits.record:
                error = too_large(size, window.limits)
            if error is None:
                yield value if size <= large else sized(value, size, window.limits)
            else:
                error.message = f"line {window.position(window.value_start).line}: {error.message}"
                yield error.at(window.address, row)
            row += 1
            more = _next_row(window, opening=",")
    except ValueTooLarge as wrong:
        line, column = window.position(window.index)
        raise SourceError(
            f"{window.address}: row {row} at line {line}, column {column} is {wrong}; in a list no row after that can "
            "be read; write JSON Lines"
        ) from None
    except JSONDecodeError as wrong:
        line, column = window.position(wrong.pos)
        reason, message = explain(wrong)
        if reason == "truncated":
            message = f"the file {message}; it may have been cut short"
        raise SourceError(
            f"{window.address}: row {row} is broken at line {line}, column {column}; {message}; in a list no row after "
            "that can be read; correct it, or write JSON Lines"
        ) from None
    window.expect_end()


def _next_row(window: Window, opening: str) -> bool:
    """Move past the bracket or comma before a row; at the end of the list, move past it and return False."""
    found = window.next_char()
    if found == opening:
        window.index += 1
        found = window.next_char()
        if found != "]":
            return True
        if opening == ",":
            raise JSONDecodeError(TRAILING_COMMA, window.text, window.index)
    if found != "]":
        raise JSONDecodeError("Expecting ',' or ']'", window.text, window.index)
    window.index += 1
    return False
