"""How a template writes the values of a tool call's arguments, and how they are read back.

A notation is that of JSON, of Python, or one with quotes of its own, such as Gemma 4's `<|"|>`. All share JSON's
brackets, commas and colons. So one scanner finds where a value ends, also while it still comes in; then it is decoded.

Decoding is strict where two readers could understand a call differently: a key that stands twice in an object is an
error, and so are NaN, infinity and numbers too large to be finite.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from templatekit.hooks.record_fields import finite_number, unique_keys

_BLANK = re.compile(r"[ \t\r\n]*")
_ATOM = re.compile("[^\\s,:{}\\[\\]()<>\"'\U00100000-\U0010ffff]+")
"""A number, a constant or a bare key. The last characters can stand for control tokens, see `ControlMarks`."""
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "a": "\a", "v": "\v"}
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_MAX_DEPTH = 100
"""Deeper values are refused, before the stack is full."""


class Read(NamedTuple):
    """A value, and the position behind it."""

    value: Any
    end: int


class _StringEnd(NamedTuple):
    """How far a string was read; where it is not closed, more text is read from there."""

    position: int
    is_closed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How values are written."""

    quote: str = '"'
    """Opens and closes a string."""
    escapes: bool = True
    """Whether a string may hold its own quote behind a backslash."""
    python: bool = False
    """Whether strings stand in single quotes too, and lists in parentheses."""
    bare_keys: bool = False
    """Whether keys stand without quotes."""

    @property
    def is_json(self) -> bool:
        """Whether it is JSON as such."""
        return self == JSON

    @property
    def quotes(self) -> tuple[str, ...]:
        """All quotes that open a string."""
        return ("'", '"') if self.python else (self.quote,)

    def with_quote(self, quote: str) -> Notation:
        """The same with other quotes."""
        return replace(self, quote=quote)

    def read(self, text: str, position: int) -> Read:
        """Read the value at a position, behind blank space; raises `ValueError` where no whole value stands there."""
        if not self.is_json:
            return self._value(text, position, 0)
        try:
            return Read(*_JSON.raw_decode(text, _skip_blank(text, position)))
        except RecursionError:
            raise ValueError("too deep") from None

    def decode(self, text: str) -> Any:
        """The value that a text spells, with blank space around it; raises `ValueError` for any other text."""
        value, end = self.read(text, 0)
        if not _BLANK.fullmatch(text, end):
            raise ValueError(f"more than a value, at {end}")
        return value

    def string_end(self, text: str, position: int, end: int, quote: str) -> _StringEnd:
        """Where the string ends that this quote has opened before a position."""
        pattern = _string_pattern(quote, self.escapes)
        while match := pattern.search(text, position, end):
            position = match.end()
            if match[0] == quote:
                return _StringEnd(position, True)
        return _StringEnd(max(position, end - max(len(quote) - 1, self.escapes)), False)

    def _value(self, text: str, position: int, depth: int) -> Read:
        if depth > _MAX_DEPTH:
            raise ValueError("too deep")
        position = _skip_blank(text, position)
        sign = text[position]
        if sign == "{":
            return self._mapping(text, position + 1, depth + 1)
        if sign == "[" or (sign == "(" and self.python):
            return self._list(text, position + 1, _CLOSING[sign], depth + 1)
        if (found := self._string(text, position)) is not None:
            return found
        match = _ATOM.match(text, position)
        if match is None:
            raise ValueError(f"no value at {position}")
        return Read(atom(match[0]), match.end())

    def _mapping(self, text: str, position: int, depth: int) -> Read:
        found: list[tuple[str, Any]] = []
        position = _skip_blank(text, position)
        while text[position] != "}":
            key = self._string(text, position)
            if key is None:
                match = _ATOM.match(text, position) if self.bare_keys else None
                if match is None:
                    raise ValueError(f"no key at {position}")
                key = Read(match[0], match.end())
            position = _skip_blank(text, key.end)
            if text[position] != ":":
                raise ValueError(f"no value for the key {key.value!r}")
            value, position = self._value(text, position + 1, depth)
            found.append((key.value, value))
            position = _next_item(text, position, "}")
        return Read(unique_keys(found), position + 1)

    def _list(self, text: str, position: int, closing: str, depth: int) -> Read:
        found: list[Any] = []
        position = _skip_blank(text, position)
        while text[position] != closing:
            value, position = self._value(text, position, depth)
            found.append(value)
            position = _next_item(text, position, closing)
        return Read(found, position + 1)

    def _string(self, text: str, position: int) -> Read | None:
        quote = next((quote for quote in self.quotes if text.startswith(quote, position)), None)
        if quote is None:
            return None
        start = position + len(quote)
        end, is_closed = self.string_end(text, start, len(text), quote)
        if not is_closed:
            raise ValueError(f"the string at {position} has no end")
        raw = text[start : end - len(quote)]
        return Read(_unescaped(raw) if self.escapes else raw, end)


JSON = Notation()
PYTHON = Notation(python=True)


class ValueScanner:
    """Finds where a value ends in text that comes in, and looks at each character once."""

    def __init__(self, notation: Notation) -> None:
        self._notation = notation
        self._outside = _outside_pattern(notation)
        self._quote = ""
        """That of the string that is open."""
        self._closings: list[str] = []
        """The brackets that are still to come."""
        self._is_atom = False
        self.is_done = False

    def scan(self, text: str, position: int, end: int) -> int:
        """Go on with the text between two positions. Returns how far it was read; the value's end if `is_done`.

        Raises `ValueError` at a character that can be no part of a value.
        """
        while position < end and not self.is_done:
            if self._quote:
                position, is_closed = self._notation.string_end(text, position, end, self._quote)
                if not is_closed:
                    break
                self._quote = ""
                self.is_done = not self._closings
                continue
            if self._closings:
                position = _end_of(self._outside, text, position, end)
            elif not self._is_atom:
                position = _end_of(_BLANK, text, position, end)
            if not self._closings and (self._is_atom or not self._may_open(text, position, end)):
                match = _ATOM.match(text, position, end)
                self._is_atom, position = self._is_atom or bool(match), match.end() if match else position
            if position < end:
                if self._is_atom:
                    self.is_done = True
                    break
                behind = self._enter_or_leave(text, position, end)
                if behind == position:
                    break
                position = behind
        return position

    def finish(self) -> bool:
        """Whether the value is whole if no more text comes in."""
        self.is_done = self.is_done or self._is_atom
        return self.is_done

    def _may_open(self, text: str, position: int, end: int) -> bool:
        """Whether a quote stands at a position, or begins there at the end."""
        return any(
            quote.startswith(text[position : min(end, position + len(quote))]) for quote in self._notation.quotes
        )

    def _enter_or_leave(self, text: str, position: int, end: int) -> int:
        """Read a bracket or an opening quote; returns the position before a quote that is not whole yet."""
        sign = text[position]
        if sign in self._closings[-1:]:
            self._closings.pop()
            self.is_done = not self._closings
            return position + 1
        if sign in "{[" or (sign == "(" and self._notation.python):
            self._closings.append(_CLOSING[sign])
            if len(self._closings) > _MAX_DEPTH:
                raise ValueError("too deep")
            return position + 1
        for quote in self._notation.quotes:
            if text.startswith(quote, position, end):
                self._quote = quote
                return position + len(quote)
            if quote.startswith(text[position:end]):
                return position
        raise ValueError(f"no part of a value: {sign!r}")


def _end_of(pattern: re.Pattern[str], text: str, position: int, end: int) -> int:
    """Where a match ends of a pattern that also matches nothing."""
    match = pattern.match(text, position, end)
    return match.end() if match else position


@lru_cache(maxsize=64)
def _string_pattern(quote: str, escapes: bool) -> re.Pattern[str]:
    """The end of a string, or a character that is escaped in it."""
    return re.compile((r"\\.|" if escapes else "") + re.escape(quote), re.DOTALL)


@lru_cache(maxsize=64)
def _outside_pattern(notation: Notation) -> re.Pattern[str]:
    """What stands between brackets: blank space, commas, colons, numbers and constants, bare keys, simple strings."""
    if notation.bare_keys:
        plain = f"[^{re.escape(notation.quote[0])}{{}}\\[\\]()<>\"'\U00100000-\U0010ffff]+"
    else:
        plain = r"[\s0-9A-Za-z_.+\-,:]+"
    quotes = [re.escape(quote) for quote in notation.quotes if len(quote) == 1]
    strings = [rf"{quote}[^{quote}\\]*{quote}" for quote in quotes]
    return re.compile(f"(?:{'|'.join([plain, *strings])})*")


def atom(text: str) -> Any:
    """The number, truth value or null that a text spells, in JSON's or Python's way; raises `ValueError` for others."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"no number or constant: {text!r}")
    return finite_number(text) if match[1] or match[2] else int(text)


def loose_value(text: str) -> Any:
    """What a text without quotes stands for: a value of JSON or of Python if it spells one, else the text itself."""
    try:
        return atom(text)
    except ValueError:
        pass
    if text.lstrip()[:1] in ("{", "["):
        for notation in (JSON, PYTHON):
            try:
                return notation.decode(text)
            except ValueError:
                continue
    return text


def typed_value(text: str, schema: Any) -> Any:
    """What a text without quotes stands for under its JSON Schema; as `loose_value` without one.

    A text that is no value of the schema's types stays text.
    """
    types = _types(schema)
    if not types:
        return loose_value(text)
    value = loose_value(text if "string" in types else text.strip())
    if type(value) is float and value.is_integer() and "integer" in types and "number" not in types:
        return int(value)
    return text if types.isdisjoint(_TYPE_NAMES[type(value)]) else value


def _types(schema: Any) -> frozenset[str]:
    """The types that a schema names; empty where it leaves them open."""
    if not isinstance(schema, Mapping):
        return frozenset()
    declared = schema.get("type")
    names = declared if isinstance(declared, list) else [declared]
    found = {name for name in names if isinstance(name, str)}
    for key in ("anyOf", "oneOf"):
        choices = schema.get(key)
        for choice in choices if isinstance(choices, list) else ():
            chosen = _types(choice)
            if not chosen:
                return frozenset()
            found |= chosen
    if not found and isinstance(values := schema.get("enum"), list):
        found = {name for value in values for name in _TYPE_NAMES.get(type(value), ())}
    if found and schema.get("nullable"):
        found.add("null")
    return frozenset(found)


_TYPE_NAMES: dict[type, tuple[str, ...]] = {
    str: ("string",),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    type(None): ("null",),
    dict: ("object",),
    list: ("array",),
}


_JSON = json.JSONDecoder(
    strict=False, parse_constant=finite_number, parse_float=finite_number, object_pairs_hook=unique_keys
)
"""Line breaks within strings are read: models write them."""


def _skip_blank(text: str, position: int) -> int:
    position = _end_of(_BLANK, text, position, len(text))
    if position == len(text):
        raise ValueError("the text ends within a value")
    return position


def _next_item(text: str, position: int, closing: str) -> int:
    """The position of the next item, or of the closing bracket."""
    position = _skip_blank(text, position)
    if text[position] == ",":
        return _skip_blank(text, position + 1)
    if text[position] != closing:
        raise ValueError(f"no comma at {position}")
    return position


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _SURROGATE_PAIR.sub(_joined_pair, _ESCAPE.sub(_character, text))


def _character(match: re.Match[str]) -> str:
    if code := match[1] or match[2] or match[3]:
        if int(code, 16) > 0x10FFFF:
            raise ValueError(f"no character: {match[0]}")
        return chr(int(code, 16))
    return _ESCAPES.get(match[4], match[4])


def _joined_pair(match: re.Match[str]) -> str:
    return match[0].encode("utf-16", "surrogatepass").decode("utf-16")
