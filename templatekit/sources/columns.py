"""Renames a record's columns: `{"instruction": "question"}` gives the field `instruction` what `question` held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from templatekit.errors import ConfigError, RecordError, nearest
from templatekit.types import Record


def parse_columns(text: str) -> dict[str, str]:
    """The mapping that `FIELD=COLUMN,FIELD=COLUMN` writes; raises `ConfigError` for anything else."""
    columns: dict[str, str] = {}
    for part in text.split(",") if text.strip() else ():
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not (field and equals and column):
            raise ConfigError(
                f"columns: found {part!r}; expected FIELD=COLUMN, parted by commas, such as response=answer"
            )
        if field in columns:
            raise ConfigError(f"columns: field {field!r} twice, as {columns[field]!r} and {column!r}; keep one")
        columns[field] = column
    return columns


def map_columns(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with its columns under their fields' names; the record itself stays as it is.

    A column is moved. A dotted path (`answer.text`, `instances.0.input`) reaches into objects and lists and copies,
    since what it reaches into stays; a column whose own name has dots in it comes first. Raises `RecordError` for a
    column that the record lacks, and for a field that would overwrite another column.
    """
    if not columns:
        return record
    values = {field: _value(record, column) for field, column in columns.items()}
    moved = set(columns.values())
    rest = {key: value for key, value in record.items() if key not in moved}
    for field, column in columns.items():
        if field in rest:
            raise RecordError(
                f"would be overwritten by column {column!r}; found a column {field!r} as well; expected one; map that "
                f"one too: {field}_2={field}",
                field=field,
                reason="column_taken",
            )
    return rest | values


def _value(record: Record, column: str) -> Any:
    if column in record:
        return record[column]
    value: Any = record
    way: list[str] = []
    for part in column.split("."):
        keys = _keys(value)
        if part not in keys:
            inside = f" in {'.'.join(way)!r}" if way else ""
            hint = f"{inside}; {nearest(part, keys)}" if keys else f"; found {type(value).__name__}{inside}"
            wanted = ".".join([*way, part])
            raise RecordError(f"no column {wanted!r}{hint}", field=column, reason="missing_column")
        value = value[int(part)] if isinstance(value, list) else value[part]
        way.append(part)
    return value


def _keys(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [key for key in value if isinstance(key, str)]
    return [str(index) for index in range(len(value))] if isinstance(value, list) else []
