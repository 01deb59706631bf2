"""Reads JSON files of every shape: a list, JSON Lines, one object, an object that holds a list.

The content tells which, whatever the file's name ends in. The name decides one thing alone, where the content cannot: a
file of one line that holds one object with a list of objects inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, BinaryIO, ClassVar

from templatekit.errors import RecordError, SourceError
from templatekit.sources.compression import stop_rewinding
from templatekit.sources.files import FileSource, exists, extension, is_folder, require_records, to_path
from templatekit.sources.json_array import CHUNK, Window, read_array
from templatekit.sources.json_decoder import WHITESPACE, Decoder, InvalidValue, describe, explain, record_error
from templatekit.sources.json_lines import read_lines
from templatekit.sources.magic import skip_bom
from templatekit.types import Record

EXTENSIONS = (".json", ".jsonl", ".ndjson")
"""Each also with the ending of a compression behind it."""

_LINES_EXTENSIONS = (".jsonl", ".ndjson")
_ROWS_KEYS = frozenset({"data", "rows", "records", "examples", "items", "samples", "entries", "train"})
"""Names under which files keep their rows."""
_FIELD_KEYS = frozenset({"messages", "conversations", "conversation", "chosen", "rejected", "tools", "instances"})
"""Names under which a single row keeps a list of objects."""
_HEAD_LINES = 20
_HEAD_BYTES = 1 << 20


class JsonSource(FileSource):
    """JSON and JSON Lines files, plain or compressed."""

    name: ClassVar[str] = "json"
    description: ClassVar[str] = "A JSON or JSON Lines file, plain or compressed, told by its content."

    def accepts(self, address: str) -> bool:
        """Whether it is a file, of any ending, or would be one that ends in `.json`, `.jsonl`, `.ndjson`."""
        path = to_path(address)
        return not is_folder(path) and (exists(path) or extension(path) in EXTENSIONS)

    def read_stream(self, stream: BinaryIO, address: str) -> Iterator[Record | RecordError]:
        """The rows, each value exactly as JSON gives it."""
        yield from read_json(stream, address)


def read_json(stream: BinaryIO, address: str, chunk_size: int = CHUNK) -> Iterator[Record | RecordError]:
    """The rows of a stream that can go back to its beginning.

    `address` names it in errors and, by its ending, settles what content cannot.
    """
    begin = skip_bom(stream, address, "JSON")
    lines = _is_lines(_head(stream))
    stream.seek(begin)
    if lines:
        stop_rewinding(stream)
        yield from read_lines(stream, address)
        return
    char = Window(stream, address, chunk_size).next_char()
    stream.seek(begin)
    stop_rewinding(stream)
    if char == "[":
        yield from require_records(read_array(stream, address, chunk_size), address)
    elif char == "{":
        yield from _read_object(stream, address, chunk_size)
    elif char:
        raise _not_json(stream, address)
    else:
        raise SourceError(f"{address}: no records; found an empty file; expected objects: a list, or one on each line")


def _head(stream: BinaryIO) -> list[str]:
    """The first lines that are not blank: two or more, each cut to a bound but for the first."""
    lines: list[bytes] = []
    size = 0
    while len(lines) < 2 or (len(lines) < _HEAD_LINES and size < _HEAD_BYTES):
        line = stream.readline(_HEAD_BYTES)
        if not line:
            break
        if not lines and not line.endswith(b"\n") and not line.lstrip().startswith(b"["):
            line += stream.readline()  # a row has to fit into memory, a list in one line does not
        size += len(line)
        if not line.isspace():
            lines.append(line)
    return [line.decode(errors="replace").strip(WHITESPACE) for line in lines]


def _is_lines(head: list[str]) -> bool:
    """Whether a text is JSON Lines rather than one JSON value.

    It is where its first line is a whole value and others follow, or where a later line is a whole object that cannot
    go on from the lines before it: then a line before it is broken. A list in the first line needs another value in the
    second: else it is a list with rubbish behind it.
    """
    if len(head) < 2:
        return False
    decoder = Decoder()
    try:
        value, end, _ = decoder.decode(head[0])
    except JSONDecodeError:
        return not head[0].startswith("[") and _continues_anew(decoder, head)
    if isinstance(value, list):
        return _is_whole(decoder, head[1])
    return isinstance(value, (dict, InvalidValue)) or head[0][end:].strip(WHITESPACE) in ("", ",")


def _continues_anew(decoder: Decoder, head: list[str]) -> bool:
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


def _read_object(stream: BinaryIO, address: str, chunk_size: int) -> Iterator[Record | RecordError]:
    """One object: a row of its own, or the holder of a list of rows. It is read as a whole."""
    window = Window(stream, address, chunk_size)
    window.read_all()
    window.next_char()
    first_line = window.place().line
    try:
        value, _, needs_check = window.decode(Decoder())
    except JSONDecodeError as error:
        place = window.place(error.pos)
        words = explain(error).words
        raise SourceError(f"{address}: not JSON at line {place.line}, column {place.column}; {words}") from None
    one_line = window.place().line == first_line
    window.expect_end()
    rows = [value]
    by_name = one_line and extension(to_path(address)) in _LINES_EXTENSIONS
    if isinstance(value, InvalidValue) and not by_name:  # it may hold any number of rows
        raise SourceError(f"{address}: not usable; found {value}")
    if isinstance(value, dict):
        key = _rows_key(value, address, strict=by_name)
        rows = value[key] if key is not None else rows
        if not rows or (not value and not by_name):
            raise SourceError(f"{address}: no records; found {describe(value)} and no rows in it")
    for row, record in enumerate(rows):
        error_in_row = record_error(record, needs_check)
        yield record if error_in_row is None else error_in_row.at(address, row)


def _rows_key(value: dict[str, Any], address: str, *, strict: bool) -> str | None:
    """The key under which an object holds the rows; None where the object is a row itself."""
    keys = [key for key, item in value.items() if _holds_rows(key, item) and (key in _ROWS_KEYS or not strict)]
    if len(keys) > 1:
        raise SourceError(
            f"{address}: cannot tell the rows; found lists of objects under {', '.join(map(repr, keys))}; expected one "
            "such list; save the list you want in a file of its own"
        )
    empty = (key for key in value if key in _ROWS_KEYS and value[key] == [])
    return keys[0] if keys else next(empty, None)


def _holds_rows(key: str, item: Any) -> bool:
    if not isinstance(item, list) or key in _FIELD_KEYS:
        return False
    objects = [each for each in item if isinstance(each, (dict, InvalidValue))]
    messages = all(isinstance(each, dict) and each.keys() & {"role", "from"} for each in objects)
    return bool(objects) and not messages


def _not_json(stream: BinaryIO, address: str) -> SourceError:
    start = stream.read(160).decode(errors="replace").strip()
    whole = _is_whole(Decoder(), start)
    found = f"the lone value {start[:60]}" if whole else f"text that begins {start[:60]!r}"
    return SourceError(
        f"{address}: no JSON records; found {found}; expected objects: a list, or one on each line; "
        "other formats are told by their names' endings (.csv, .tsv, .parquet, .arrow)"
    )
