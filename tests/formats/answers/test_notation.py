"""Values of arguments: there and back in each notation, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from testkit.answer_forms import values
from testkit.budget import budget

from templatekit.formats.answers.notation import JSON, PYTHON, Notation, ValueScanner, atom, loose_value, typed_value

QUOTED = Notation(quote="<|q|>", escapes=False, bare_keys=True)
TICKED = Notation(quote="``", escapes=True)


def quoted(value: Any) -> str:
    """A value in the notation with quotes of its own, which Gemma 4 has."""
    if isinstance(value, str):
        return f"<|q|>{value}<|q|>"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{quoted(item)}" for key, item in value.items()) + "}"
    return "[" + ",".join(map(quoted, value)) + "]" if isinstance(value, list) else json.dumps(value)


def ticked(value: Any) -> str:
    """As JSON, with strings in double ticks."""
    if isinstance(value, str):
        return "``" + value.replace("\\", "\\\\").replace("`", "\\`") + "``"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{ticked(key)}: {ticked(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(ticked, value)) + "]" if isinstance(value, list) else json.dumps(value)


WRITERS: dict[str, tuple[Notation, Callable[[Any], str]]] = {
    "json": (JSON, json.dumps),
    "json as it stands": (JSON, lambda value: json.dumps(value, ensure_ascii=False, indent=2)),
    "python": (PYTHON, repr),
    "python from json": (PYTHON, json.dumps),
    "own quotes": (QUOTED, quoted),
    "ticks": (TICKED, ticked),
}


def scanned(notation: Notation, text: str, sizes: list[int]) -> tuple[int, bool]:
    """Where a scanner that is given a text in parts finds the end of its value, and whether it does."""
    scanner = ValueScanner(notation)
    position = end = index = 0
    while end < len(text) and not scanner.is_done:
        end = min(len(text), end + sizes[index % len(sizes)])
        index += 1
        position = scanner.scan(text[:end], position, end)
    return position, scanner.finish()


def is_equal(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)  # 1 is not True here, nor 1.0


@pytest.mark.parametrize("kind", WRITERS)
@given(
    value=values(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), behind=st.sampled_from(["", "\n", "<x>"])
)
@example(value="\ud83d", sizes=[1], behind="")
@example(value="a word", sizes=[1], behind="")
@example(value="🎉\\", sizes=[1], behind="")
@settings(max_examples=budget(200))
def test_there_and_back(kind: str, value: Any, sizes: list[int], behind: str) -> None:
    notation, write = WRITERS[kind]
    if notation is QUOTED and "<|q|>" in json.dumps(value):
        return  # it cannot be written
    text = write(value)
    assert is_equal(notation.decode(f" {text}\n"), value)
    read = notation.read(text + behind, 0)
    assert is_equal(read.value, value) and read.end == len(text)
    assert scanned(notation, text + behind, sizes) == (len(text), True)


def test_the_check_notices_another_value() -> None:
    for other in (True, 1.0, "1", [1], None):
        assert not is_equal(JSON.decode("1"), other)
    assert scanned(JSON, '{"x": "}"', [3]) != (9, True)


@pytest.mark.parametrize("notation", [JSON, PYTHON, QUOTED, TICKED])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "[1",
        "[1 2]",
        "{: 2}",
        "{'a' 1}",
        "[NaN]",
        "[Infinity]",
        "[1e999]",
        "[word]",
        "[1]]",
        "]",
        "[01]",
        "'",
    ],
)
def test_what_is_no_value_is_refused(notation: Notation, text: str) -> None:
    with pytest.raises(ValueError):
        notation.decode(text)


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        (JSON, '{"a": 1, "a": 1}'),
        (JSON, '[{"a": {"b": 1, "b": 2}}]'),
        (PYTHON, "{'a': 1, \"a\": 2}"),
        (QUOTED, "{a:1,a:2}"),
        (JSON, "[" * 150 + "]" * 150),
        (JSON, "[" * 100_000),
        (PYTHON, "[" * 100_000),
        (PYTHON, "'\\UFFFFFFFF'"),
        (JSON, f"[{'9' * 5000}]"),
    ],
)
def test_what_readers_could_understand_differently_is_refused(notation: Notation, text: str) -> None:
    scanner = ValueScanner(notation)
    with pytest.raises(ValueError):
        scanner.scan(text, 0, len(text))
        notation.decode(text)


@pytest.mark.parametrize("text", ["(1)", "1)", ")", "[1<", '{"a": </', "[1}", "{\udc00}"])
def test_a_scanner_stops_at_what_is_no_part_of_a_value(text: str) -> None:
    scanner = ValueScanner(JSON)
    try:
        end = scanner.scan(text, 0, len(text))
    except ValueError:
        return
    assert scanner.is_done and text[:end] == "1"


def test_a_scanner_waits_for_more() -> None:
    for text in ("{", '{"a', '{"a\\', '"', "[1, ", '"\\"', " "):
        assert not scanned(JSON, text, [1])[1]
    assert scanned(QUOTED, "<|", [1]) == (0, False)
    assert scanned(QUOTED, "<|q|>text<|q|", [1])[1] is False
    assert scanned(JSON, "12", [1]) == (2, True)  # the text ends there


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-0.5e3", -500.0),
        ("True", True),
        ("null", None),
        ("None", None),
        (" 5", " 5"),
        ("05", "05"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("٣", "٣"),
        ('"5"', '"5"'),
        ('{"a": [1]}', {"a": [1]}),
        ("{'a': (1, None)}", {"a": [1, None]}),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        ("{braces}", "{braces}"),
        ("", ""),
    ],
)
def test_texts_without_quotes(text: str, value: Any) -> None:
    assert is_equal(loose_value(text), value)
    assert typed_value(text, {"type": "string"}) == text


def test_types_of_a_schema() -> None:
    assert typed_value(" 5 ", {"type": "integer"}) == 5
    assert typed_value("null", {"type": "string", "nullable": True}) is None
    assert typed_value("5", {"enum": ["5", "6"]}) == "5"
    assert typed_value("5", {"enum": [5, 6]}) == 5
    assert typed_value("true", {"oneOf": [{"type": "boolean"}, {"type": "string"}]}) is True
    assert typed_value("5", {"anyOf": [{"type": "string"}, {"$ref": "#/x"}]}) == 5
    odd_ones: list[Any] = [None, 5, [], {"type": 5}, {"type": {"a": 1}}, {"anyOf": 5}, {"enum": "x"}]
    for odd in odd_ones:
        assert typed_value("5", odd) == 5


def test_atoms_are_finite() -> None:
    assert math.isfinite(atom("1e308"))
    with pytest.raises(ValueError):
        atom("-1e309")
