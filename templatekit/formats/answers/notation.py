"""How a template writes the values of a tool call's arguments, and how they are read back.

A notation is that of JSON, of Python, or one with quotes of its own, such as Gemma 4's `<|"|>`. All share JSON's
brackets, commas and colons, so one reader serves them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_BLANK = re.compile(r"[ \t\r\n]*")
_ATOM = re.compile(r"[^\s,:{}\[\]()<>]+")
_KEY = re.compile(r"[^\s,:{}\[\]\"']+")
_BRACKETS_AND_QUOTES = re.compile(r'["{}\[\]]')
_END_OF_STRING = re.compile(r'["\\]')
_ATOMS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "a": "\a", "v": "\v"}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


_JSON = json.JSONDecoder(strict=False, parse_constant=_refuse)
_MAX_DEPTH = 100
"""Deeper values are refused, as by Python's JSON parser, but before the stack is full."""


class Incomplete(ValueError):
    """The text ends within a value."""


class Read(NamedTuple):
    """A value, and the position behind it."""

    value: Any
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How values are written."""

    quote: str = '"'
    """Opens and closes a string."""
    escapes: bool = True
    """Whether a string may hold its own quote behind a backslash."""
    python: bool = False
    """Whether strings stand in single quotes too."""
    bare_keys: bool = False
    """Whether keys stand without quotes."""

    @property
    def is_json(self) -> bool:
        """Whether it is JSON as such."""
        return self == JSON

    def with_quote(self, quote: str) -> Notation:
        """The same with other quotes."""
        return Notation(quote=quote, escapes=self.escapes, python=self.python, bare_keys=self.bare_keys)

    def read(self, text: str, position: int) -> Read:
        """Read the value at a position, behind blank space.

        Raises `Incomplete` where the text ends first, `ValueError` where no value stands there.
        """
        position = _BLANK.match(text, position).end()  # type: ignore[union-attr]
        if self.is_json:
            try:
                value, end = _JSON.raw_decode(text, position)
            except RecursionError:
                raise ValueError("too deep") from None
            except ValueError:
                if _is_cut(text, position):
                    raise Incomplete from None
                raise
            if end == len(text) and type(value) in (int, float):
                raise Incomplete  # another digit may follow
            return Read(value, end)
        return self._value(text, position, 0)

    def _value(self, text: str, position: int, depth: int) -> Read:
        if depth > _MAX_DEPTH:
            raise ValueError("too deep")
        position = _skip_blank(text, position)
        sign = text[position]
        if sign == "{":
            return self._mapping(text, position + 1, depth + 1)
        if sign in "[(" and (sign == "[" or self.python):
            return self._list(text, position + 1, "]" if sign == "[" else ")", depth + 1)
        if (found := self._string(text, position)) is not None:
            return found
        match = _ATOM.match(text, position)
        if match is None:
            raise ValueError(f"no value at {position}")
        if match.end() == len(text):
            raise Incomplete
        return Read(atom(match[0]), match.end())

    def _mapping(self, text: str, position: int, depth: int) -> Read:
        found: dict[str, Any] = {}
        position = _skip_blank(text, position)
        while text[position] != "}":
            key = self._string(text, position)
            if key is None:
                match = _KEY.match(text, position) if self.bare_keys else None
                if match is None:
                    raise ValueError(f"no key at {position}")
                key = Read(match[0], match.end())
            position = _skip_blank(text, key.end)
            if text[position] != ":":
                raise ValueError(f"no value for the key {key.value!r}")
            found[key.value], position = self._value(text, position + 1, depth)
            position = _next_item(text, position, "}")
        return Read(found, position + 1)

    def _list(self, text: str, position: int, closing: str, depth: int) -> Read:
        found: list[Any] = []
        position = _skip_blank(text, position)
        while text[position] != closing:
            value, position = self._value(text, position, depth)
            found.append(value)
            position = _next_item(text, position, closing)
        return Read(found, position + 1)

    def _string(self, text: str, position: int) -> Read | None:
        quotes = ("'", '"') if self.python else (self.quote,)
        quote = next((quote for quote in quotes if text.startswith(quote, position)), None)
        if quote is None:
            if any(quote.startswith(text[position:]) for quote in quotes):
                raise Incomplete
            return None
        start = position + len(quote)
        if not self.escapes:
            end = text.find(quote, start)
            if end < 0:
                raise Incomplete
            return Read(text[start:end], end + len(quote))
        end = start
        while not text.startswith(quote, end):
            if end >= len(text):
                raise Incomplete
            end += 2 if text[end] == "\\" else 1
        return Read(_unescaped(text[start:end]), end + len(quote))


JSON = Notation()
PYTHON = Notation(python=True)


def atom(text: str) -> Any:
    """The number, truth value or null that a text spells, in JSON's or Python's way; raises `ValueError` for others."""
    if text in _ATOMS:
        return _ATOMS[text]
    value = json.loads(text, parse_constant=_refuse)
    if type(value) in (int, float):
        return value
    raise ValueError(f"no atom: {text!r}")


def loose_value(text: str) -> Any:
    """What a text without quotes stands for: a value of JSON or an atom of Python if it spells one, else itself."""
    try:
        return atom(text)
    except ValueError:
        pass
    if text[:1] in ("{", "["):
        for notation in (JSON, PYTHON):
            try:
                value, end = notation.read(text, 0)
            except (ValueError, RecursionError):
                continue
            if not text[end:].strip():
                return value
    return text


def typed_value(text: str, schema: Mapping[str, Any] | None) -> Any:
    """What a text without quotes stands for under its JSON Schema; as `loose_value` without one.

    A text that is no value of the schema's types stays text.
    """
    types = _types(schema)
    if not types:
        return loose_value(text)
    value = loose_value(text)
    if _is_of(value, types):
        return int(value) if type(value) is float and "number" not in types else value
    return text


def _types(schema: Any) -> frozenset[str]:
    """The types that a schema names; empty where it leaves them open."""
    if not isinstance(schema, Mapping):
        return frozenset()
    declared = schema.get("type")
    found = {declared} if isinstance(declared, str) else {t for t in declared or () if isinstance(t, str)}
    for key in ("anyOf", "oneOf"):
        for choice in schema.get(key) or ():
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


def _is_of(value: Any, types: frozenset[str]) -> bool:
    if type(value) is float and value.is_integer() and "integer" in types:
        return True
    return not types.isdisjoint(_TYPE_NAMES[type(value)])


def _skip_blank(text: str, position: int) -> int:
    position = _BLANK.match(text, position).end()  # type: ignore[union-attr]
    if position == len(text):
        raise Incomplete
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
    return re.sub(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))", _character, text, flags=re.DOTALL)


def _character(match: re.Match[str]) -> str:
    if code := match[1] or match[2]:
        return chr(int(code, 16))
    return _ESCAPES.get(match[3], match[3])


def _is_cut(text: str, position: int) -> bool:
    """Whether JSON that cannot be read may become whole by more text: a string or a bracket is still open, or nothing
    but the beginning of an atom stands there."""
    if position == len(text) or any(name.startswith(text[position:]) for name in ("true", "false", "null", "-")):
        return True
    depth = 0
    while (match := _BRACKETS_AND_QUOTES.search(text, position)) is not None:
        position = match.end()
        if match[0] == '"':
            while (match := _END_OF_STRING.search(text, position)) is not None:
                position = match.end() + (match[0] == "\\")
                if match[0] == '"':
                    break
            else:
                return True
        else:
            depth += 1 if match[0] in "{[" else -1
            if depth <= 0:
                return False
    return depth > 0
