"""Reads JSON files of every layout: a list, JSON Lines, one object, an object that contains a list.

The layout is detected from the content, whatever the file's extension. The extension decides only the one case that the
content leaves open: a file of one line with one object that contains a list of objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, BinaryIO, ClassVar

from templatekit.errors import RecordError, SourceError
from templatekit.sources.compression import stop_rewinding
from templatekit.sources.files import FileSource, exists, extension, is_folder, require_records, to_path
from templatekit.sources.json_array import CHUNK, ValueTooLarge, Window, read_array
from templatekit.sources.json_decoder import (
    WHITESPACE,
    Decoder,
    InvalidValue,
    describe,
    explain,
    has_too_many_values,
    record_error,
)
from templatekit.sources.json_lines import read_lines
from templatekit.sources.limits import DEFAULT_LIMITS, Limits, check_blank, size_of, sized
from templatekit.sources.magic import skip_bom
from templatekit.types import Record

EXTENSIONS = (".json", ".jsonl", ".ndjson")
"""The extensions of JSON files; the extension of a compression may follow each."""

_LINES_EXTENSIONS = (".jsonl", ".ndjson")
_ROWS_KEYS = frozenset({"data", "rows", "records", "examples", "items", "samples", "entries", "train"})
"""Keys of the list of rows, in an object that is a whole data set."""
_FIELD_KEYS = frozenset({"messages", "conversations", "conversation", "chosen", "rejected", "tools", "instances"})
"""Keys of a list of objects that belongs to a single row."""
_HEAD_LINES = 20
_HEAD_BYTES = 1 << 20


class JsonSource(FileSource):
    """JSON and JSON Lines files, plain or compressed."""

    name: ClassVar[str] = "json"
    description: ClassVar[str] = "A JSON or JSON Lines file, plain or compressed; its layout is detected."

    def accepts(self, address: str) -> bool:
        """Whether the address is any file, or a missing one that ends in `.json`, `.jsonl` or `.ndjson`."""
        path = to_path(address)
        return not is_folder(path) and (exists(path) or extension(path) in EXTENSIONS)

    def read_stream(self, stream: BinaryIO, address: str) -> Iterator[Record | RecordError]:
        """The rows, each value exactly as the JSON has it."""
        yield from read_json(stream, address, limits=self.limits)


def read_json(
    stream: BinaryIO,
    address: str,
    chunk_size: int = CHUNK,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Record | RecordError]:
    """The rows of a stream that can be rewound to its start.

    `address` names it in errors; its extension decides where the content leaves the layout open.
    """
    begin = skip_bom(stream, address, "JSON")
    head = _head(stream, address, limits)
    # A row that is too large may still be followed by others; a list or an object of rows has short first lines.
    lines = extension(to_path(address)) != ".json" if head is None else _is_lines(head)
    stream.seek(begin)
    stop_rewinding(stream)
    if lines:
        yield from read_lines(stream, address, limits)
        return
    window = Window(stream, address, chunk_size, limits)
    first = window.next_char()
    if first == "[":
        yield from require_records(read_array(window), address)
    elif first == "{":
        yield from _read_object(window)
    elif first:
        raise _not_json(window)
    else:
        raise SourceError(f"{address}: no records; found an empty file; expected objects: a list, or one on each line")


def _head(stream: BinaryIO, address: str, limits: Limits) -> list[str] | None:
    """The first lines that are not blank: at least two if there are any, all but the first cut to a bound.

    None if the first line is more than a row may be, and no list.
    """
    lines: list[bytes] = []
    size = blank = 0
    while len(lines) < 2 or (len(lines) < _HEAD_LINES and size < _HEAD_BYTES):
        line = stream.readline(_HEAD_BYTES)
        if not line:
            break
        if not lines and not line.endswith(b"\n") and not line.lstrip().startswith(b"["):
            line += stream.readline(limits.record)  # a row has to fit into memory, a list on one line does not
            endless = not line.endswith(b"\n") and len(line) > limits.record and not line.isspace()
            if endless or has_too_many_values(line):
                return None
        size += len(line)
        if not line.isspace():
            lines.append(line)
            blank = 0
        else:
            blank += len(line)
            check_blank(blank, address, limits)
    return [line.decode(errors="replace").strip(WHITESPACE) for line in lines]


def _is_lines(head: list[str]) -> bool:
    """Whether the first lines of a text are JSON Lines rather than one JSON value.

    The answer is yes if the first line is a whole value and other lines follow. It is also yes if a later line is a
    whole object that cannot continue the lines before it: then one of those earlier lines is broken. If the first line
    is a list, the second line must also be a value; otherwise the text is one list with something invalid after it.
    """
    if len(head) < 2:
        return False
    decoder = Decoder()
    try:
        value, end, _ = decoder.decode(head[0])
    except JSONDecodeError:
        return not head[0].startswith("[") and _restarts(decoder, head)
    if isinstance(value, list):
        return _is_whole(decoder, head[1])
    return isinstance(value, (dict, InvalidValue)) or head[0][end:].strip(WHITESPACE) in ("", ",")


def _restarts(decoder: Decoder, head: list[str]) -> bool:
    """Whether a line is a whole object, and the text breaks at or before its start if it is read as one value."""
    before = head[0] + "\n"
    for line in head[1:]:
        if line.startswith("{") and _is_whole(decoder, line) and _breaks_at(decoder, before + line) <= len(before):
            return True
        before += line + "\n"
    return False


def _is_whole(decoder: Decoder, text: str) -> bool:
    try:
        return decoder.decode(text).end == len(text)
    except JSONDecodeError:
        return False


def _breaks_at(decoder: Decoder, text: str) -> int:
    try:
        return decoder.decode(text).end
    except JSONDecodeError as error:
        return error.pos


def _read_object(window: Window) -> Iterator[Record | RecordError]:
    """Read one object into memory: either a row, or the container of a list of rows."""
    address = window.address
    try:
        window.read_all(window.limits.whole)
        window.next_char()
        first_line = window.position(window.index).line
        value, _, needs_check = window.decode(Decoder(), window.limits.whole)
    except ValueTooLarge as error:
        raise SourceError(f"{address}: {error}") from None
    except JSONDecodeError as error:
        line, column = window.position(error.pos)
        _, message = explain(error)
        raise SourceError(f"{address}: not JSON at line {line}, column {column}; {message}") from None
    one_line = window.position(window.index).line == first_line
    window.expect_end()
    rows = [value]
    named_as_lines = one_line and extension(to_path(address)) in _LINES_EXTENSIONS
    if isinstance(value, InvalidValue) and not named_as_lines:  # it may contain any number of rows
        raise SourceError(f"{address}: not usable; found {value}")
    if isinstance(value, dict):
        key = _rows_key(value, address, strict=named_as_lines)
        rows = value[key] if key is not None else rows
        if not rows or (not value and not named_as_lines):
            raise SourceError(f"{address}: no records; found {describe(value)} and no rows in it")
    may_be_large = len(window.text) > window.limits.record // 4
    for row, record in enumerate(rows):
        error_in_row = record_error(record, needs_check)
        if error_in_row is not None:
            yield error_in_row.at(address, row)
        else:
            yield sized(record, size_of(record), window.limits) if may_be_large else record


def _rows_key(value: dict[str, Any], address: str, *, strict: bool) -> str | None:
    """The key of the list of rows; None if the object is a row itself. `strict` allows only the usual keys."""
    keys = [key for key, item in value.items() if _has_rows(key, item) and (key in _ROWS_KEYS or not strict)]
    if len(keys) > 1:
        raise SourceError(
            f"{address}: cannot tell the rows; found lists of objects under {', '.join(map(repr, keys))}; expected one "
            "such list; save the list you want in a file of its own"
        )
    empty = (key for key in value if key in _ROWS_KEYS and value[key] == [])
    return keys[0] if keys else next(empty, None)


def _has_rows(key: str, item: Any) -> bool:
    if not isinstance(item, list) or key in _FIELD_KEYS:
        return False
    objects = [each for each in item if isinstance(each, (dict, InvalidValue))]
    messages = all(isinstance(each, dict) and each.keys() & {"role", "from"} for each in objects)
    return bool(objects) and not messages


def _not_json(window: Window) -> SourceError:
    start = window.text[window.index : window.index + 160].strip()
    whole = _is_whole(Decoder(), start)
    found = f"the lone value {start[:60]}" if whole else f"text that begins {start[:60]!r}"
    return SourceError(
        f"{window.address}: no JSON records; found {found}; expected objects: a list, or one on each line; "
        "other formats are recognized by their file extensions (.csv, .tsv, .parquet, .arrow)"
    )
