"""Conversations as JSON, exactly: what would not come back equal is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from templatekit.types import Example, Message, Origin


class NotPlain(Exception):
    """A value that JSON does not give back as it was; the message shows it."""


def example_to_json(example: Example) -> bytes:
    """An example; raises `NotPlain` for values that no JSON file could have held, such as dates."""
    if type(example) is not Example:
        raise NotPlain(f"an object of {type(example).__name__}")
    values = _given(example, messages=[_given(message) for message in example.messages])
    # Halves of surrogate pairs, which JSON can hold and UTF-8 cannot, may stand in what no template prints.
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")


def example_from_json(text: bytes) -> Example:
    """The inverse."""
    values = json.loads(text.decode("utf-8", "surrogatepass"))
    messages = tuple(Message(**_restored(Message, message)) for message in values.pop("messages"))
    return Example(messages=messages, **_restored(Example, values))


def origin_to_json(origin: Origin) -> list[Any]:
    """An origin as a list of plain values."""
    return [origin.kind, origin.message, origin.field, origin.generation]


def origin_from_json(values: list[Any]) -> Origin:
    """The inverse."""
    kind, message, field, generation = values
    return Origin(kind=kind, message=message, field=field, generation=generation)


def _given(value: Any, **replaced: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as by default."""
    found: dict[str, Any] = {}
    for one in fields(value):
        item = getattr(value, one.name)
        if one.name in replaced:
            found[one.name] = replaced[one.name]
        elif not _is_default(one, item):
            found[one.name] = _plain(list(item) if isinstance(item, tuple) else item)
    return found


def _is_default(one: Any, value: Any) -> bool:
    if one.default is MISSING and one.default_factory is MISSING:
        return False
    default = one.default if one.default is not MISSING else one.default_factory()
    return type(value) is type(default) and bool(value == default)


def _restored(of: type, values: Mapping[str, Any]) -> dict[str, Any]:
    tuples = {one.name for one in fields(of) if str(one.type).startswith("tuple")}
    return {name: tuple(value) if name in tuples else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    """The value, of types that come back as they were: a tuple or a number as a key would not."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if type(value) is list:
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise NotPlain(f"{type(value).__name__} {value!r}"[:80])
