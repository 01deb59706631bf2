"""Decodes one JSON value as the json module does, and finds what that module lets pass in silence.

The module keeps the last of two equal keys, reads NaN and 1e999, and makes lone surrogates, which no tokenizer takes.
Such values are replaced by a `Refused` while decoding, so that the rest of the text can still be read.
"""

from __future__ import annotations

import json
import math
import re
from json import JSONDecodeError
from typing import Any, NamedTuple

from templatekit.errors import RecordError, shorten

MAX_DEPTH = 256
"""Deepest nesting of objects and lists in a row. Arrow, `repr` and the json module itself fail not far beyond."""

WHITESPACE = " \t\r\n"
"""All that JSON counts as white space."""

TRAILING_COMMA = "Illegal trailing comma"
"""How the json module's words for it begin, since Python 3.13."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)


class InvalidValue(NamedTuple):
    """Stands where a value was that no record may hold."""

    reason: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.found}; expected {self.expected}"


class Decoded(NamedTuple):
    """A value, with the offset behind it."""

    value: Any
    end: int
    needs_check: bool
    """Whether `fault` must look into the value: so few rows have to pay for it."""


class Decoder:
    """Decodes JSON values; the errors it raises are `JSONDecodeError`s alone."""

    def __init__(self) -> None:
        self._refused = False
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def decode(self, text: str, start: int = 0) -> Decoded:
        """The value that begins at `start`, where no white space may stand."""
        self._refused = False
        try:
            value, end = self._json.raw_decode(text, start)
        except RecursionError:
            return Decoded(_too_deep(), _end_by_brackets(text, start), True)
        brackets = text.count("[", start, end) + text.count("{", start, end)
        needs_check = self._refused or brackets > MAX_DEPTH or _has_surrogate_escape(text, start, end)
        return Decoded(value, end, needs_check)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any] | InvalidValue:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        return self._refuse("duplicate_key", f"key {shorten(twice)} twice in one object", "each key once")

    def _constant(self, name: str) -> InvalidValue:
        return self._refuse("not_finite", name, "a finite number, null or text (JSON has no NaN or Infinity)")

    def _float(self, digits: str) -> float | InvalidValue:
        value = float(digits)
        return self._refuse("not_finite", digits, "a number that a float can hold") if math.isinf(value) else value

    def _int(self, digits: str) -> int | InvalidValue:
        try:
            return int(digits)
        except ValueError:  # Python's guard against very long conversions
            return self._refuse("huge_integer", f"an integer of {len(digits)} digits", "a shorter one, or text")

    def _refuse(self, reason: str, found: str, expected: str) -> InvalidValue:
        self._refused = True
        return InvalidValue(reason, found, expected)


def record_error(value: Any, needs_check: bool) -> RecordError | None:
    """Why a decoded value cannot be a record; None where it can."""
    if not isinstance(value, (dict, InvalidValue)):
        return RecordError(
            f"not an object; found {describe(value)}; expected an object with named fields", reason="not_an_object"
        )
    if not needs_check:
        return None
    found = _find_invalid(value)
    if found is None:
        return None
    path, refused = found
    return RecordError(f"not a usable value; found {refused}", field=path or None, reason=refused.reason)


def describe(value: Any) -> str:
    """A JSON value in a few words, however large or deep it is."""
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


class Explanation(NamedTuple):
    """A syntax error in plain words."""

    reason: str
    words: str


def explain(error: JSONDecodeError) -> Explanation:
    """What a `JSONDecodeError` found, what was expected, and the reason code for it."""
    text, at = error.doc, error.pos
    here = text[at : at + 1]
    if error.msg.startswith("Unterminated string") or at >= len(text):
        return Explanation("truncated", "breaks off in the middle; expected its end")
    if error.msg.startswith("Invalid control character"):
        name = {"\n": "line break", "\t": "tab", "\x00": "NUL"}.get(here, "control character")
        meant = {"\n": ", or a closing quote before it", "\x00": " or left out"}.get(here, "")
        escape = json.dumps(here)[1:-1]
        return Explanation("control_character", f"found a raw {name} in a string; expected it as {escape}{meant}")
    before = text[max(0, at - 200) : at].rstrip(WHITESPACE)
    if error.msg.startswith(TRAILING_COMMA) or (here in ("]", "}") and before.endswith(",")):
        return Explanation("trailing_comma", "found a comma with nothing behind it; expected no comma before a bracket")
    if error.msg == "Extra data" and text[at:].strip(WHITESPACE) == ",":
        return Explanation("trailing_comma", "found a comma behind the value; expected nothing there")
    if error.msg == "Extra data":
        return Explanation("invalid_json", f"found {_excerpt(text, at)} behind the value; expected nothing there")
    if here == "'":
        return Explanation(
            "invalid_json", f"found single quotes, as Python prints: {_excerpt(text, at)}; expected JSON"
        )
    expected = error.msg.removeprefix("Expecting ")
    if expected == error.msg:
        return Explanation("invalid_json", f"{error.msg[:1].lower()}{error.msg[1:].rstrip(': ')}: {_excerpt(text, at)}")
    return Explanation("invalid_json", f"found {_excerpt(text, at)}; expected {expected}")


def _excerpt(text: str, at: int) -> str:
    return shorten(text[at : at + 24])


def _too_deep() -> InvalidValue:
    return InvalidValue("too_deep", f"nesting deeper than {MAX_DEPTH}", "flat rows")


def _has_surrogate_escape(text: str, start: int, end: int) -> bool:
    first = text.find("\\u", start, end)
    return first >= 0 and _SURROGATE.search(text, first, end) is not None


def _end_by_brackets(text: str, start: int) -> int:
    """Where the object or list at `start` ends, told by its brackets alone; for values too deep to decode."""
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
    """The first thing in a row that no record may hold, with its dotted path."""
    stack: list[tuple[tuple[str, ...], Any]] = [((), row)]
    while stack:
        path, value = stack.pop()
        refused: InvalidValue | None = None
        if isinstance(value, InvalidValue):
            refused = value
        elif isinstance(value, str):
            refused = _lone_surrogate(value)
        elif isinstance(value, (dict, list)):
            if len(path) >= MAX_DEPTH:
                refused = _too_deep()
            elif isinstance(value, list):
                stack += reversed([((*path, str(index)), item) for index, item in enumerate(value)])
            else:
                refused = next(filter(None, map(_lone_surrogate, value)), None)
                stack += reversed([((*path, key), item) for key, item in value.items()])
        if refused is not None:
            return ".".join(path[:4]) + ("…" if len(path) > 4 else ""), refused
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
