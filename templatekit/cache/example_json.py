"""Conversations as JSON, exactly: an example that JSON would not restore as it was is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from templatekit.types import Example, Message


class NotJsonSafe(Exception):
    """A value that JSON would not restore as it was; the message shows it."""


def example_to_json(example: Example) -> bytes:
    """An example as JSON; raises `NotJsonSafe` for values that no JSON file can hold, such as dates."""
    if type(example) is not Example:
        raise NotJsonSafe(f"an object of {type(example).__name__}")
    values = _non_default_fields(example, messages=[_non_default_fields(message) for message in example.messages])
    # Fields that no template prints may hold lone surrogates: JSON allows them, UTF-8 does not.
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")


def example_from_json(text: bytes) -> Example:
    """The inverse of `example_to_json`."""
    values = json.loads(text.decode("utf-8", "surrogatepass"))
    messages = tuple(Message(**_restored(Message, message)) for message in values.pop("messages"))
    return Example(messages=messages, **_restored(Example, values))


def _non_default_fields(value: Any, **replaced: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their default; `replaced` ones get the given value."""
    found: dict[str, Any] = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if field.name in replaced:
            found[field.name] = replaced[field.name]
        elif not _is_default(field, item):
            found[field.name] = _plain(list(item) if isinstance(item, tuple) else item)
    return found


def _is_default(field: Any, value: Any) -> bool:
    if field.default is MISSING and field.default_factory is MISSING:
        return False
    default = field.default if field.default is not MISSING else field.default_factory()
    return type(value) is type(default) and bool(value == default)


def _restored(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    tuples = {field.name for field in fields(kind) if str(field.type).startswith("tuple")}
    return {name: tuple(value) if name in tuples else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    """The value, in types that JSON restores as they were: it restores neither tuples nor numbers that are keys."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if type(value) is list:
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise NotJsonSafe(f"{type(value).__name__} {value!r}"[:80])
