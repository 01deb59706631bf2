"""Every layout of JSON file, and the error for every fault."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import stat
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from templatekit.errors import RecordError, SourceError
from templatekit.sources.json_decoder import MAX_DEPTH
from templatekit.sources.json_records import JsonSource
from templatekit.types import Record

Write = Callable[[str, "str | bytes"], str]
A, B = {"a": 1}, {"b": "zwei"}
LINES = '{"a": 1}\n{"b": "zwei"}\n'
LIST = '[{"a": 1}, {"b": "zwei"}]'


def read(address: str) -> list[Record | RecordError]:
    return list(JsonSource().read(address))


def the_error(items: list[Record | RecordError], row: int) -> RecordError:
    error = items[row]
    assert isinstance(error, RecordError), items
    assert error.row == row
    assert isinstance(error.source, str)
    return error


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.ndjson", "x.txt", "x", "x.JSON"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LIST,
        LINES.rstrip("\n"),
        LINES.replace("\n", "\r\n"),
        "\n\n" + LINES.replace("\n", "\n \t\n\r\n"),
        "\ufeff" + LINES,
        "\ufeff" + LIST,
        LIST.replace(",", "\r\n,\r\n"),
        "[\n" + LINES.replace("\n", "\n,", 1) + "]\n\n",
        json.dumps([A, B], indent=4),
        '{"data": [{"a": 1}, {"b": "zwei"}]}',
        '{"version": 1, "data": [{"a": 1}, {"b": "zwei"}], "ids": [1, 2], "none": []}',
        '{\n"rows": [\n{"a": 1},\n{"b": "zwei"}]}',
        '{\n"of any name": [\n{"a": 1}\n,{"b": "zwei"}\n]\n}',
        LINES.replace("\n", "\n\ufeff", 1),
    ],
)
@pytest.mark.parametrize("gz", [False, True])
def test_the_layout_is_detected_from_the_content(write: Write, name: str, content: str, gz: bool) -> None:
    data = content.encode()
    assert read(write(name, gzip.compress(data) if gz else data)) == [A, B]
    if gz:
        assert read(write(name + ".gz", gzip.compress(data))) == [A, B]


@pytest.mark.parametrize("content", ['{"a": 1}', '{\n  "a": 1\n}\n', '[{"a": 1}]', '[\n{\n"a": 1}]'])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_one_record(write: Write, name: str, content: str) -> None:
    assert read(write(name, content)) == [A]


def test_a_lone_conversation_is_one_row_not_a_holder_of_rows(write: Write) -> None:
    for row in (
        {"id": "x", "conversations": [{"from": "human", "value": "hi"}]},
        {"turns": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"instruction": "x", "instances": [{"input": "", "output": "y"}]},
    ):
        assert read(write("one.json", json.dumps(row))) == [row]
        assert read(write("one.jsonl", json.dumps(row) + "\n")) == [row]


def test_the_name_decides_only_over_one_line_with_an_unknown_list(write: Write) -> None:
    row = {"question": "x", "answers": [{"text": "y"}]}
    assert read(write("one.jsonl", json.dumps(row))) == [row]
    assert read(write("one.json", json.dumps(row))) == [{"text": "y"}]
    assert read(write("data.jsonl", '{"data": [{"a": 1}]}')) == [A]


def test_several_lists_are_named(write: Write) -> None:
    with pytest.raises(SourceError, match=r"found lists of objects under 'train', 'test'; expected one"):
        read(write("x.json", '{"train": [{"a": 1}], "test": [{"b": 1}]}'))


def test_values_stay_as_they_are(write: Write) -> None:
    row = {
        "date": "2020-01-01",
        "number": "007",
        "big": 12345678901234567890123,
        "float": 1.5e-300,
        "null": None,
        "yes": True,
        "nested": {"list": [1, [2.0, {"x": ""}]]},
        "odd": "\u2028\u2029\x85\x1c 😀 \\u0041",
        "": "empty key",
    }
    for text in (json.dumps(row), json.dumps(row, ensure_ascii=False), json.dumps(row, indent=1)):
        for content in (text, f"[{text}]"):
            (got,) = read(write("x.json", content))
            assert got == row
            assert isinstance(got, dict)
            assert [type(value) for value in got.values()] == [type(value) for value in row.values()]


def test_only_line_feeds_end_a_line(write: Write) -> None:
    text = '{"a": "1\u20282\u20293\x854\u000b"}'.replace("\u000b", "")
    assert read(write("x.jsonl", f"{text}\n{text}\n")) == [json.loads(text)] * 2


# One bad row of JSON Lines: the code, what the message says, and that reading goes on.

BAD_ROWS = {
    "trailing comma": (b'{"a": 1,}', "trailing_comma", "found a comma with nothing after it"),
    "trailing comma in a list": (b'{"a": [1, ]}', "trailing_comma", "comma"),
    "comma after the row": (b'{"a": 1},', "trailing_comma", "found a comma after the value"),
    "broken off": (b'{"a": "tex', "truncated", "found the end of the line in the middle of a value"),
    "broken off in an object": (b'{"a": 1', "truncated", "found the end of the line"),
    "two values": (b'{"a": 1} {"b": 2}', "invalid_json", "found '{\"b\": 2}' after the value"),
    "Python's quotes": (b"{'a': 1}", "invalid_json", "single quotes"),
    "Python's None": (b'{"a": None}', "invalid_json", "found 'None}'; expected value"),
    "no colon": (b'{"a" 1}', "invalid_json", "found '1}'; expected ':' delimiter"),
    "bad escape": (rb'{"a": "\x41"}', "invalid_json", "invalid \\escape"),
    "raw tab": (b'{"a": "x\ty"}', "control_character", r"found a raw tab in a string; expected it as \t"),
    "raw escape": (b'{"a": "x\x1by"}', "control_character", r"expected it as \u001b"),
    "NUL": (b'{"a": "x\x00y"}', "control_character", "found a raw NUL in a string"),
    "NULs alone": (b"\x00\x00\x00", "invalid_json", r"found '\x00\x00\x00'"),
    "Latin-1": (b'{"a": "caf\xe9"}', "bad_encoding", "found byte 0xe9 at byte 19 of the file; expected UTF-8"),
    "surrogate as bytes": (b'{"a": "\xed\xa0\x80"}', "bad_encoding", "found byte 0xed at byte 16"),
    "lone surrogate": (
        rb'{"a": "ok", "b": [{"c": "x\ud83d"}]}',
        "lone_surrogate",
        "b.0.c: line 2: not a usable value; found the lone surrogate \\ud83d at character 1",
    ),
    "lone surrogate in a key": (rb'{"a": {"\uDE00": 1}}', "lone_surrogate", r"a: line 2: .*\\ude00 at character 0"),
    "NaN": (b'{"a": {"b": NaN}}', "not_finite", "a.b: line 2: not a usable value; found NaN"),
    "Infinity": (b'{"a": Infinity}', "not_finite", "found Infinity"),
    "-Infinity": (b'{"a": [0, -Infinity]}', "not_finite", "a.1: line 2: .* found -Infinity"),
    "float out of range": (b'{"a": 1e999}', "not_finite", "found 1e999; expected a number that a float can hold"),
    "duplicate key": (b'{"a": 1, "b": 2, "a": 3}', "duplicate_key", "found key 'a' twice in one object"),
    "duplicate key inside": (b'{"x": [{"a": 1, "a": 1}]}', "duplicate_key", "x.0: line 2: .*key 'a' twice"),
    "huge integer": (b'{"a": ' + b"9" * 5000 + b"}", "huge_integer", "found an integer of 5000 digits"),
    "deep list": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep", "found nesting deeper than 256"),
    "deep object": (b'{"a":' * 300 + b"1" + b"}" * 300, "too_deep", "found nesting deeper than 256"),
    "a list": (b'[{"a": 1}]', "not_an_object", "not an object; found a list of 1; expected an object"),
    "text": (b'"a"', "not_an_object", "found text 'a'"),
    "a number": (b"1", "not_an_object", "found the number 1"),
    "zero": (b"0.0", "not_an_object", "found the number 0.0"),
    "null": (b"null", "not_an_object", "found null"),
    "true": (b"true", "not_an_object", "found true"),
    "a lone NaN": (b"NaN", "not_finite", "found NaN"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_line_is_one_error(write: Write, name: str) -> None:
    bad, reason, words = BAD_ROWS[name]
    address = write("x.jsonl", b'{"a": 1}\n' + bad + b'\n\n{"b": "zwei"}\n')
    items = read(address)
    assert items[::2] == [A, B]
    error = the_error(items, 1)
    assert error.reason == reason
    assert str(error).startswith(f"{address}:1:")
    assert "line 2: " in str(error)
    assert words in str(error) or re.search(words, str(error)), str(error)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_first_line_does_too(write: Write, name: str) -> None:
    bad, reason, _ = BAD_ROWS[name]
    items = read(write("x.jsonl", bad + b'\n{"a": 1}\n{"b": "zwei"}\n'))
    assert items[1:] == [A, B]
    assert the_error(items, 0).reason == reason


def test_several_bad_lines_at_the_start(write: Write) -> None:
    items = read(write("x.jsonl", '{"a": 1,}\n# no JSON\n\n{"a": "b\n{"a": 1}\n'))
    assert [item.reason for item in items if isinstance(item, RecordError)] == [
        "trailing_comma",
        "invalid_json",
        "truncated",
    ]
    assert items[3] == A


@pytest.mark.parametrize("tail", ['{"b": "zw', '{"b"', "{", '{"b": 1', "[1, 2", '"text'])
def test_a_truncated_last_line(write: Write, tail: str) -> None:
    items = read(write("x.jsonl", LINES + tail))
    assert items[:2] == [A, B]
    error = the_error(items, 2)
    assert error.reason == "truncated"
    assert "line 3: not whole; found the end of the file in the middle of a value (was the file cut short?)" in str(
        error
    )


def test_a_last_line_cut_inside_a_character(write: Write) -> None:
    items = read(write("x.jsonl", LINES.encode() + '{"b": "ä'.encode()[:-1]))
    assert the_error(items, 2).reason == "truncated"


# Rows of a list that are well-formed but unusable are skipped like lines; broken syntax ends the list.


UNUSABLE = [name for name, (_, reason, _) in BAD_ROWS.items() if reason in {
    "lone_surrogate", "not_finite", "duplicate_key", "huge_integer", "too_deep", "not_an_object"
}]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "holder"),
    [
        *((name, "[%s]") for name in UNUSABLE),
        # An object that holds a list is decoded as a whole.
        *((name, '{"data": [%s]}') for name in UNUSABLE if name != "deep list"),
    ],
)
def test_an_unusable_row_of_a_list_is_one_error(write: Write, name: str, holder: str) -> None:
    bad, reason, _ = BAD_ROWS[name]
    items = read(write("x.json", (holder % '{"a": 1},\n@,\n{"b": "zwei"}').encode().replace(b"@", bad)))
    assert items[::2] == [A, B]
    error = the_error(items, 1)
    assert error.reason == reason
    if holder == "[%s]":
        assert "line 2: " in str(error)


SYNTAX = {
    "trailing comma": (
        '[{"a": 1},\n {"b": 2},\n ]',
        2,
        "row 2 is broken at line 3, column 2; found a comma with nothing",
    ),
    "no comma": ('[{"a": 1}\n {"b": 2}]', 1, "row 1 is broken at line 2, column 2; found '{\"b\": 2}]'; expected ','"),
    "cut between": ('[{"a": 1},\n', 1, "row 1 is broken at line 2, column 1; the file breaks off in the middle"),
    "cut after a row": ('[{"a": 1}\n', 1, "the file breaks off in the middle; expected its end; it may have been cut"),
    "cut in text": ('[{"a": 1},\n {"b": "x', 1, "row 1 is broken at line 2, column 8; the file breaks off"),
    "cut in an object": ('[{"a": 1},\n {"b": ', 1, "row 1 is broken at line 2, column 8; the file breaks off"),
    "comma in an object": ('[{"a": 1},\n {"b": 2,}]', 1, "row 1 is broken at line 2, column"),
    "raw line break": ('[{"a": 1},\n {"b": "x\ny"}]', 1, "column 10; found a raw line break in a string"),
    "raw tab": ('[{"a": 1},\n {"b": "x\ty"}]', 1, "found a raw tab in a string; expected it as \\t"),
    "deep and never closed": ('[{"a": 1},\n' + "[" * 5000, 1, "row 1 is broken at line 2"),
    "more after": ('[{"a": 1}]\n}', 1, "more text after the end of the JSON value, at line 2, column 1; found '}'"),
    "lone comma": ("[,]", 0, "row 0 is broken at line 1, column 2"),
}


@pytest.mark.parametrize("name", SYNTAX)
def test_a_broken_list_ends_with_the_place(write: Write, name: str) -> None:
    content, rows, words = SYNTAX[name]
    got = []
    with pytest.raises(SourceError) as caught:
        for item in JsonSource().read(write("x.json", content)):
            got.append(item)
    assert words in str(caught.value)
    assert len(got) == rows or name == "more after"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{\n "a": 1,\n}', "not JSON at line "),
        ('{"a": 1', "not JSON at line 1, column 8; breaks off in the middle"),
        ('{"data": [{"a": 1}, {"b": ', "breaks off in the middle"),
        ('{"a": 1}]', "more text after the end of the JSON value, at line 1, column 9; found ']'"),
        ('{\n"a": 1\n}\n{\n"a": 2\n}', "at line 4, column 1"),
        ("instruction,output\nx,y\n", "no JSON records; found text that begins 'instruction,output\\nx,y'"),
        ('"instruction","output"\n"x","y"\n', "no JSON records; found text that begins"),
        ('"only text"', 'no JSON records; found the lone value "only text"'),
        ("42", "found the lone value 42"),
        ("null", "found the lone value null"),
    ],
)
def test_a_file_that_holds_no_records_as_a_whole(write: Write, content: str, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(write("x.json", content))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "\n \r\n\t", "\ufeff", "[]", " [ ]\n", "{}", '{"data": []}', '{"data": [], "n": 0}']
)
def test_no_records(write: Write, content: str) -> None:
    with pytest.raises(SourceError, match="no records"):
        read(write("x.json", content))


def test_a_duplicate_key_of_a_lone_object(write: Write) -> None:
    (error,) = read(write("x.jsonl", '{"a": 1, "a": 2}'))
    assert isinstance(error, RecordError)
    assert error.reason == "duplicate_key"
    for content in (
        '{"a": 1, "a": 2}',
        '{"data": [{"a": 1}], "data": [{"a": 2}]}',
        '{"data": ' + "[" * 9999 + "]" * 9999 + "}",
    ):
        with pytest.raises(SourceError, match=r"found (key .* twice|nesting deeper)"):
            read(write("x.json", content))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("content", [LINES, LIST])
def test_utf_16_is_named(write: Write, encoding: str, content: str) -> None:
    with pytest.raises(SourceError, match=r"UTF-(16|32)"):
        read(write("x.jsonl", content.encode(encoding)))


def test_a_list_in_another_encoding(write: Write) -> None:
    content = '[{"a": "x"},\n{"a": "café"}]'.encode("latin-1")
    with pytest.raises(SourceError, match=rf"not UTF-8; found byte 0xe9 at byte {content.index(0xE9)} of the file"):
        read(write("x.json", content))
    with pytest.raises(SourceError, match=r"found byte 0xc3 at byte 8 of the file"):
        read(write("x.json", '[{"a": "ä'.encode()[:-1]))


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PAR1", "Parquet"),
        (b"ARROW1\0\0", "Arrow"),
        (b"PK\x03\x04", "zip"),
        (b"BZh9", "bzip2"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_other_kinds_of_file_are_named(write: Write, start: bytes, kind: str) -> None:
    with pytest.raises(SourceError, match=kind):
        read(write("x.json", start + bytes(range(200))))


@pytest.mark.parametrize("content", [LINES * 2000, f"[{LINES.replace(chr(10), ',') * 2000}{{}}]"])
def test_a_cut_gzip_file(write: Write, content: str) -> None:
    packed = gzip.compress(os.urandom(3000).hex().join(["", ""]).encode() + b"\n" + content.encode())
    for end in (2, 9, 15, len(packed) // 2, len(packed) - 4):
        with pytest.raises(SourceError, match="damaged gzip data"):
            read(write("x.json.gz", packed[:end]))
    flipped = bytearray(packed)
    flipped[-6] ^= 1
    with pytest.raises(SourceError, match="damaged gzip data"):
        read(write("x.json.gz", bytes(flipped)))
    with pytest.raises(SourceError, match="damaged gzip data"):
        read(write("x.json.gz", gzip.compress(LIST.encode()) + b"garbage"))


def test_rows_before_a_cut_still_come(write: Write) -> None:
    lines = "".join(json.dumps({"a": os.urandom(40).hex()}) + "\n" for _ in range(50_000))
    packed = gzip.compress(lines.encode(), 1)
    got = 0
    with pytest.raises(SourceError, match="early end"):
        for _ in JsonSource().read(write("x.jsonl.gz", packed[: len(packed) * 3 // 4])):
            got += 1
    assert 30_000 < got < 40_000


def test_a_field_of_ten_megabytes(write: Write) -> None:
    row = {"a": "wörd " * 2_000_000, "b": 1}
    text = json.dumps(row, ensure_ascii=False)
    for content in (text, f"{text}\n{text}\n", f"[{text},{text}]", f'{{"data": [{text}]}}'):
        started = time.perf_counter()
        assert all(item == row for item in read(write("x.json", content)))
        assert time.perf_counter() - started < 5


# Addresses that are not a readable file


def test_a_missing_file_lists_its_neighbours(write: Write, tmp_path: Path) -> None:
    write("alpaca.json", LIST)
    with pytest.raises(SourceError, match=rf"no such file or folder; did you mean '{tmp_path}/alpaca.json'\?"):
        read(str(tmp_path / "alpca.json"))
    with pytest.raises(SourceError, match=r"holds alpaca\.json$"):
        read(str(tmp_path / "zzzzzz.json"))
    with pytest.raises(SourceError, match=rf"its folder '{tmp_path}/no' does not exist"):
        read(str(tmp_path / "no" / "x.json"))
    with pytest.raises(SourceError, match="no such file"):
        read(str(tmp_path / "alpaca.json" / "x.json"))
    (tmp_path / "link.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(SourceError, match="a link whose file is missing"):
        read(str(tmp_path / "link.json"))
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    with pytest.raises(SourceError, match="cannot be read"):
        read(str(tmp_path / "loop.json"))


@pytest.mark.parametrize("address", ["x\0y.json", "x" * 5000 + ".json", "", "~nobody_of_that_name/x.json"])
def test_text_that_cannot_be_a_path(address: str) -> None:
    with pytest.raises(SourceError):
        read(address)


def test_a_folder_a_pipe_and_a_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a regular file; found a folder"):
        read(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.jsonl")
    started = time.perf_counter()
    with pytest.raises(SourceError, match=r"not a regular file; found a pipe \(FIFO\)"):
        read(str(tmp_path / "pipe.jsonl"))
    with pytest.raises(SourceError, match="found a device"):
        read("/dev/zero")
    assert time.perf_counter() - started < 1


def test_no_permission(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    address = write("x.json", LIST)

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match="no permission to read it"):
        read(address)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission_for_real(write: Write) -> None:
    address = write("x.json", LIST)
    Path(address).chmod(stat.S_IWUSR)
    with pytest.raises(SourceError, match="no permission to read it"):
        read(address)


# Cost


@pytest.mark.parametrize("shape", ["lines", "list"])
def test_fifty_megabytes_in_constant_memory(tmp_path: Path, shape: str) -> None:
    line = json.dumps({"instruction": "Say it. ä", "input": "", "output": "word " * 100})
    count = 50_000_000 // len(line)
    path = tmp_path / "big.json"
    with path.open("w") as file:
        parts = ("", "\n", "\n") if shape == "lines" else ("[", ",", "]")
        file.write(parts[0] + (line + parts[1]) * (count - 1) + line + parts[2])
    started = time.process_time()
    assert sum(1 for _ in JsonSource().read(str(path))) == count
    assert time.process_time() - started < 5
    tracemalloc.start()
    try:
        for row, _ in enumerate(JsonSource().read(str(path))):
            if row == 20_000:
                break
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_broken_list_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text('[{"a": 1}, {"a": oops},' + '{"a": "wordwordword"},' * 1_000_000 + "{}]")
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="row 1 is broken at line 1, column 18; found 'oops"):
            read(str(path))
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_the_descriptor_is_closed_after_a_limit(write: Write) -> None:
    address = write("x.jsonl", LINES)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(128, limit[1]), limit[1]))
    try:
        for _ in range(300):
            next(JsonSource().read(address))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_depth_up_to_the_bound_is_read(write: Write) -> None:
    lists = MAX_DEPTH - 1
    row = json.loads('{"a": ' + "[" * lists + "]" * lists + "}")
    assert read(write("x.jsonl", json.dumps(row) + "\n" + json.dumps(A))) == [row, A]
