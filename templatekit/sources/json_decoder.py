"""Decodes one JSON value with the json module, and reports the invalid values that the module accepts.

The module keeps the last of two equal keys, reads NaN and 1e999, and returns lone surrogates, which no tokenizer
accepts. An `InvalidValue` replaces each of them while decoding, so that the rest of the text can still be read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from json import JSONDecodeError
from typing import Any, NamedTuple

from templatekit.errors import RecordError, shorten

# Faster libraries cannot replace this module, only run before it (compared on 43,000 lines, valid and broken). msgspec
# 0.23 keeps the last of two equal keys. jiter 0.19 finds those, but reads 1e999 as inf and refuses nesting beyond 200.
# Neither says where a value ends within a longer text, so a list would have to be in memory as a whole. Neither decodes
# past an invalid value, so nothing would name its field or find the next row. All of them read everything else alike.

MAX_DEPTH = 256
"""The deepest nesting of objects and lists in a row. Arrow, `repr` and the json module fail at little more."""

MAX_CONTAINERS = 1_000_000
"""The most objects and lists in a row: Python takes a hundred times the memory of their text."""

_LARGE = 1 << 20
"""Values of less text than this are not searched for their objects and lists before they are decoded."""

WHITESPACE = " \t\r\n"
"""The characters that JSON counts as white space."""

TRAILING_COMMA = "Illegal trailing comma"
"""The start of the json module's message for a trailing comma, since Python 3.13."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)


class InvalidValue(NamedTuple):
    """Replaces a value that no record may contain."""

    reason: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.found}; expected {self.expected}"


_TOO_DEEP = InvalidValue("too_deep", f"nesting deeper than {MAX_DEPTH}", "flat rows")


class Decoded(NamedTuple):
    """A decoded value."""

    value: Any
    end: int
    """The offset after it."""
    needs_check: bool
    """Whether `record_error` must search the value. False for most rows, so that few pay for the search."""


class Decoder:
    """Decodes JSON values; raises only `JSONDecodeError`."""

    def __init__(self) -> None:
        self._found_invalid = False
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def decode(self, text: str, start: int = 0) -> Decoded:
        """The value that begins at `start`, which must not be white space."""
        self._found_invalid = False
        try:
            value, end = self._json.raw_decode(text, start)
        except RecursionError:
            return Decoded(_TOO_DEEP, _end_by_brackets(text, start), True)
        brackets = text.count("[", start, end) + text.count("{", start, end)
        needs_check = self._found_invalid or brackets > MAX_DEPTH or _has_surrogate_escape(text, start, end)
        return Decoded(value, end, needs_check)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any] | InvalidValue:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return self._invalid("duplicate_key", f"key {shorten(twice)} twice in one object", "each key once")

    def _constant(self, name: str) -> InvalidValue:
        return self._invalid("not_finite", name, "a finite number, null or text (JSON has no NaN or Infinity)")

    def _float(self, digits: str) -> float | InvalidValue:
        value = float(digits)
        return self._invalid("not_finite", digits, "a number that a float can hold") if math.isinf(value) else value

    def _int(self, digits: str) -> int | InvalidValue:
        try:
            return int(digits)
        except ValueError:  # Python's guard against very long conversions
            return self._invalid("huge_integer", f"an integer of {len(digits)} digits", "a shorter one, or text")

    def _invalid(self, reason: str, found: str, expected: str) -> InvalidValue:
        self._found_invalid = True
        return InvalidValue(reason, found, expected)


def has_too_many_values(text: str | bytes, start: int = 0) -> bool:
    """Whether a large text has more objects and lists from `start` on than a row may have."""
    if len(text) - start < _LARGE:
        return False
    if isinstance(text, bytes):
        return text.count(b"{", start) + text.count(b"[", start) > MAX_CONTAINERS
    return text.count("{", start) + text.count("[", start) > MAX_CONTAINERS


def too_many_values() -> RecordError:
    """The error of a row with more objects and lists than that."""
    return RecordError(
        f"too many values; found more than {MAX_CONTAINERS:,} objects and lists; expected fewer in one row",
        reason="too_large",
    )


def record_error(value: Any, needs_check: bool) -> RecordError | None:
    """The reason why a decoded value cannot be a record; None if it can."""
    if not isinstance(value, (dict, InvalidValue)):
        return RecordError(
            f"not an object; found {describe(value)}; expected an object with named fields", reason="not_an_object"
        )
    if not needs_check:
        return None
    found = _find_invalid(value)
    if found is None:
        return None
    path, invalid = found
    return RecordError(f"not a usable value; found {invalid}", field=path or None, reason=invalid.reason)


def describe(value: Any) -> str:
    """A short description of a JSON value, however large or deep it is."""
    if isinstance(value, InvalidValue):
        return value.found
    if isinstance(value, dict):
        return f"an object with keys {', '.join(shorten(key) for key in list(value)[:5]) or 'none'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f"text {shorten(value[:200])}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"the number {shorten(value)}"


def explain(error: JSONDecodeError) -> tuple[str, str]:
    """The reason code of a `JSONDecodeError`, and a message: what was found, and what was expected."""
    text, at = error.doc, error.pos
    here, excerpt = text[at : at + 1], shorten(text[at : at + 24])
    if error.msg.startswith("Unterminated string") or at >= len(text):
        return "truncated", "breaks off in the middle; expected its end"
    if error.msg.startswith("Invalid control character"):
        name = {"\n": "line break", "\t": "tab", "\x00": "NUL"}.get(here, "control character")
        meant = {"\n": ", or a closing quote before it", "\x00": " or left out"}.get(here, "")
        escape = json.dumps(here)[1:-1]
        return "control_character", f"found a raw {name} in a string; expected it as {escape}{meant}"
    before = text[max(0, at - 200) : at].rstrip(WHITESPACE)
    if error.msg.startswith(TRAILING_COMMA) or (here in ("]", "}") and before.endswith(",")):
        return "trailing_comma", "found a comma with nothing after it; expected no comma before a bracket"
    if error.msg == "Extra data" and text[at:].strip(WHITESPACE) == ",":
        return "trailing_comma", "found a comma after the value; expected nothing there"
    if error.msg == "Extra data":
        return "invalid_json", f"found {excerpt} after the value; expected nothing there"
    if here == "'":
        return "invalid_json", f"found Python's single quotes: {excerpt}; expected JSON"
    expected = error.msg.removeprefix("Expecting ")
    if expected == error.msg:
        return "invalid_json", f"{error.msg[:1].lower()}{error.msg[1:].rstrip(': ')}: {excerpt}"
    return "invalid_json", f"found {excerpt}; expected {expected}"


def _has_surrogate_escape(text: str, start: int, end: int) -> bool:
    first = text.find("\\u", start, end)
    return first >= 0 and _SURROGATE.search(text, first, end) is not None


def _end_by_brackets(text: str, start: int) -> int:
    """Where the object or list at `start` ends, found by its brackets alone; for values too deep to decode."""
    depth = 0
    for match in _BRACKET.finditer(text, start):
        token = match.group()
        if token == '"':
            break
        depth += (token in "[{") - (token in "]}") if len(token) == 1 else 0
        if depth == 0:
            return match.end()
    raise JSONDecodeError("Unterminated nesting", text, len(text))


def _find_invalid(row: Any) -> tuple[str, InvalidValue] | None:
    """The first value in a row that no record may contain, with its dotted path."""
    stack: list[tuple[tuple[str, ...], Any]] = [((), row)]
    while stack:
        path, value = stack.pop()
        invalid: InvalidValue | None = None
        if isinstance(value, InvalidValue):
            invalid = value
        elif isinstance(value, str):
            invalid = _lone_surrogate(value)
        elif isinstance(value, (dict, list)):
            if len(path) >= MAX_DEPTH:
                invalid = _TOO_DEEP
            elif isinstance(value, list):
                stack += reversed([((*path, str(index)), item) for index, item in enumerate(value)])
            else:
                invalid = next(filter(None, map(_lone_surrogate, value)), None)
                stack += reversed([((*path, key), item) for key, item in value.items()])
        if invalid is not None:
            return ".".join(path[:4]) + ("…" if len(path) > 4 else ""), invalid
    return None


def _lone_surrogate(text: str) -> InvalidValue | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return InvalidValue(
            "lone_surrogate",
            f"the lone surrogate \\u{ord(text[error.start]):04x} at character {error.start}",
            "a whole character (half of an emoji was cut off)",
        )
    return None
