"""Functions with which adapters read the fields of a record: texts, lists of objects, tools and loss weights.

A field that is missing or has the wrong type is a `RecordError`; nothing is converted to text silently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from templatekit.errors import RecordError, shorten
from templatekit.types import WEIGHT_RANGE, Record, is_weight

WEIGHT_KEYS = ("weight", "loss_weight", "train")
"""The keys under which a message may hold its loss weight: a number, or true or false."""
MAX_DEPTH = 256
"""The deepest nesting of objects and lists in a field's JSON text, as in a file of JSON."""


def text_of(record: Record, key: str, *, required: bool = True) -> str:
    """Return the text under `key`. A missing or null value is an error, or "" if the text is not required.

    Any other value than text is an error: numbers and lists are never converted silently.
    """
    value = record.get(key)
    if value is None:
        if not required:
            return ""
        close = [] if key in record else get_close_matches(key, map(str, record), n=1)
        found = "null" if key in record else f"keys {', '.join(sorted(map(str, record))) or '(none)'}"
        hint = f"; is {close[0]!r} meant? then --columns {key}={close[0]}" if close else ""
        raise RecordError(f"missing; found {found}; expected text{hint}", field=key, reason=f"missing_{key}")
    if not isinstance(value, str):
        raise RecordError(
            f"not text; found {type(value).__name__} {shorten(value)}; expected text", field=key, reason=f"bad_{key}"
        )
    return value


def objects_of(record: Record, key: str) -> tuple[Mapping[str, Any], ...]:
    """Return the list of objects under `key`; a missing or null value and "" are an empty list.

    The list, or each object in it, may be JSON text: files with columns store objects as text if their keys differ.
    """
    values = _from_json(record.get(key), key)
    if values is None or values == "":
        return ()
    if isinstance(values, list):
        values = [_from_json(value, key) for value in values]
        if all(isinstance(value, Mapping) for value in values):
            return tuple(values)
    raise RecordError(
        f"found {shorten(record[key])}; expected a list of objects, or JSON of one", field=key, reason=f"bad_{key}"
    )


def _from_json(value: object, key: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return strict_json(value)
    except ValueError as error:
        raise RecordError(
            f"found {shorten(value)}; expected a list of objects, or JSON of one; not JSON: {error}",
            field=key,
            reason=f"bad_{key}",
        ) from None


def strict_json(text: str) -> Any:
    """Return the value of JSON text; raise `ValueError` for what a file of JSON may not hold either.

    That is a key twice in one object, of which one value would be lost, a number that is not finite, and nesting deeper
    than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_float=finite_number, parse_constant=finite_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    return value


def _depth(value: object) -> int:
    """How many objects and lists of a JSON value lie in each other."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    return depth


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs; raise `ValueError` for a key that stands twice, as one value would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key twice in one object")
    return value


def finite_number(text: str) -> float:
    """Return the number that a text spells; raise `ValueError` for NaN, infinity, and what is too large a number."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("NaN, Infinity or a number too large")
    return number


def tools_of(record: Record, key: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """Return the tools under `key` as servers receive them: `{"type": "function", "function": {…}}`.

    A bare function is put into that shape. JSON text is read as in `objects_of`.
    """
    return tuple(as_function(tool) for tool in objects_of(record, key))


def as_function(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool, or a tool call, as `{"type": "function", "function": {…}}`, with its `id`.

    A value that is no bare function is returned as it is.
    """
    if "function" in value or not isinstance(value.get("name"), str) or value.get("type", "function") != "function":
        return value
    outer = {key: item for key, item in value.items() if key in ("id", "index")}
    inner = {key: item for key, item in value.items() if key not in ("id", "index", "type")}
    return {**outer, "type": "function", "function": inner}


def check_arguments(call: Mapping[str, Any], field: str) -> None:
    """Raise `RecordError` (`bad_arguments`) where the arguments of a tool call are no JSON object, or text of one.

    Servers pass an object to the tool. They refuse a conversation with other arguments, or fail at it, so no model is
    asked to go on after such a call, and none should learn to write one. Missing arguments are none.
    """
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if (arguments is None or arguments == "") or not (why := _wrong_arguments(arguments)):
        return
    raise RecordError(
        f"{why}; found {shorten(arguments)}; expected a JSON object, or text of one",
        field=f"{field}.function.arguments",
        reason="bad_arguments",
    )


def _wrong_arguments(arguments: object) -> str:
    """Why arguments are no JSON object, or text of one; "" if they are."""
    try:
        if isinstance(arguments, Mapping):
            # Only numbers and depth can be wrong: an object is not text, which could be cut or name a key twice.
            json.dumps(arguments, allow_nan=False, default=str)
            return ""
        value = strict_json(arguments) if isinstance(arguments, str) else arguments
    except json.JSONDecodeError:
        return "not JSON"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return "NaN or Infinity" if isinstance(arguments, Mapping) else str(error)
    kind = _JSON_TYPES.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
    return "" if isinstance(value, dict) else f"{kind} instead of an object"


_JSON_TYPES: dict[type, str] = {list: "a list", str: "text", bool: "true or false", type(None): "null"}


def weight_of(record: Record) -> float:
    """Return the product of a message's values under `WEIGHT_KEYS`: 1 without any, 0 with `train: false`."""
    product = 1.0
    for key in WEIGHT_KEYS:
        weight = record.get(key)
        if weight is None:
            continue
        if not isinstance(weight, (int, float)) or not is_weight(weight):
            raise RecordError(
                f"found {shorten(weight)}; expected {WEIGHT_RANGE}, or true or false", field=key, reason="bad_weight"
            )
        product *= weight
    if not is_weight(product):
        keys = ", ".join(key for key in WEIGHT_KEYS if record.get(key) is not None)
        raise RecordError(
            f"the product of {keys} is {product:g}; expected {WEIGHT_RANGE}", field="weight", reason="bad_weight"
        )
    return product
