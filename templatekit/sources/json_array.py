"""A JSON list read element by element: never more in memory than a chunk and the largest row."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import BinaryIO, NoReturn

from templatekit.errors import RecordError, SourceError
from templatekit.sources.json_decoder import TRAILING_COMMA, Decoded, Decoder, explain, record_error
from templatekit.types import Record

CHUNK = 1 << 18
_WHITESPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_LITERAL = 16
"""An error this near to the end of a cut text may come from the cut: `-Infinity`, `\\ud83d\\ude00`, `1.5e-7`."""


def read_array(stream: BinaryIO, address: str, chunk_size: int = CHUNK) -> Iterator[Record | RecordError]:
    """The records of one JSON list. Behind a syntax error no row can be told apart, so that raises `SourceError`."""
    window = Window(stream, address, chunk_size)
    decoder = Decoder()
    window.skip("[")
    row = 0
    more = window.next_char() != "]"
    while more:
        try:
            value, _, needs_check = window.decode(decoder)
        except JSONDecodeError as error:
            _fail(window, address, row, error)
        wrong = record_error(value, needs_check)
        if wrong is not None:
            wrong.message = f"line {window.place(window.value_start).line}: {wrong.message}"
        yield value if wrong is None else wrong.at(address, row)
        row += 1
        more = _step(window, address, row)
    window.skip("]")
    window.expect_end()


def _step(window: Window, address: str, row: int) -> bool:
    """Goes from behind one element to the next; False at the end of the list."""
    char = window.next_char()
    if char == "]":
        return False
    if char != ",":
        _fail(window, address, row, JSONDecodeError("Expecting ',' or ']'", window.text, window.position))
    window.skip(",")
    if window.next_char() == "]":
        _fail(window, address, row, JSONDecodeError(TRAILING_COMMA, window.text, window.position))
    return True


def _fail(window: Window, address: str, row: int, error: JSONDecodeError) -> NoReturn:
    place = window.place(error.pos)
    reason, words = explain(error)
    if reason == "truncated":
        words = f"the file {words}; it may have been cut short"
    raise SourceError(
        f"{address}: row {row} is broken at line {place.line}, column {place.column}; {words}; in a list no row behind "
        "that can be read; mend it, or write JSON Lines"
    ) from None


class FilePosition:
    """A position in a file, counted from 1, for a person to find."""

    def __init__(self, line: int, column: int) -> None:
        self.line = line
        self.column = column

    def after(self, text: str, start: int, end: int) -> FilePosition:
        """The place at `text[end]`, if this is the one at `text[start]`."""
        lines = text.count("\n", start, end)
        if not lines:
            return FilePosition(self.line, self.column + end - start)
        return FilePosition(self.line + lines, end - text.rfind("\n", start, end))


class Window:
    """The part of a text in memory: from the value being read to the end of the last chunk."""

    def __init__(self, stream: BinaryIO, address: str, chunk_size: int = CHUNK) -> None:
        self.text = ""
        self.position = 0
        self.value_start = 0
        self._place = FilePosition(1, 1)
        self._stream = stream
        self._address = address
        self._chunk_size = chunk_size
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._bytes_read = stream.tell()
        self._ended = False
        self._failure: SourceError | None = None

    def place(self, position: int | None = None) -> FilePosition:
        """Where in the file a position of `text` lies."""
        return self._place.after(self.text, 0, self.position if position is None else position)

    def next_char(self) -> str:
        """Skips white space and answers the character there; "" at the end."""
        while True:
            match = _WHITESPACE.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._grow():
                return ""

    def skip(self, char: str) -> None:
        """Steps over `char`, which the caller knows to be next."""
        found = self.next_char()
        assert found == char
        self.position += 1

    def decode(self, decoder: Decoder) -> Decoded:
        """The value at the position, and steps over it; raises `JSONDecodeError` with `text` as its document."""
        while True:
            try:
                decoded = decoder.decode(self.text, self.position)
            except JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + _LONGEST_LITERAL >= len(self.text)
                if self._ended or not cut:
                    raise
            else:
                # A number at the very end may go on in the next chunk.
                if self._ended or decoded.end < len(self.text):
                    self.value_start, self.position = self.position, decoded.end
                    return decoded
            self._grow()

    def expect_end(self) -> None:
        """Raises `SourceError` unless only white space is left."""
        if self.next_char():
            place = self.place()
            found = self.text[self.position : self.position + 24]
            raise SourceError(
                f"{self._address}: more text behind the end of the JSON value, at line {place.line}, column "
                f"{place.column}; found {found!r}; expected one value, or JSON Lines with a whole object on each line"
            )

    def read_all(self) -> None:
        """Takes in the whole rest of the text."""
        while self._grow():
            pass

    def _grow(self) -> bool:
        """Drops what lies behind and reads on, at least doubling the rest; False at the end of the file."""
        if self._ended:
            return False
        self._place = self.place()
        parts = [self.text[self.position :]]
        self.text, self.position = "", 0
        wanted = max(self._chunk_size, len(parts[0]))
        while wanted > 0 and not self._ended and self._failure is None:
            parts.append(self._decode(self._stream.read(wanted)))
            wanted -= len(parts[-1])
        self.text = "".join(parts)
        grown = len(self.text) > len(parts[0])
        if self._failure is not None and not grown:  # not sooner, so that all that stands before it has been read
            raise self._failure
        return grown

    def _decode(self, data: bytes) -> str:
        self._ended = not data
        pending = len(self._utf8.getstate()[0])
        try:
            text = self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset = self._bytes_read - pending + error.start
            self._failure = SourceError(
                f"{self._address}: not UTF-8; found byte 0x{error.object[error.start]:02x} at byte {offset} of the "
                "file; expected UTF-8; convert it: iconv -f WINDOWS-1252 -t UTF-8, or whatever its encoding is"
            )
            self._ended = False
            text = error.object[: error.start].decode()
        self._bytes_read += len(data)
        return text
