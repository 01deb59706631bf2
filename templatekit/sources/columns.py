"""Renames columns of a record: `{"instruction": "question"}` moves the value of `question` to `instruction`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from templatekit.config.options import parse_pairs
from templatekit.errors import RecordError, nearest
from templatekit.types import Record


def parse_columns(text: str) -> dict[str, str]:
    """Parse `FIELD=COLUMN,FIELD=COLUMN` into a mapping; raise `ConfigError` for anything else."""
    return parse_pairs(text, "columns", "FIELD=COLUMN, separated by commas, such as response=answer")


def map_columns(record: Record, columns: Mapping[str, str]) -> Record:
    """A record with the columns under the names of their fields; `record` itself does not change.

    A column is moved. A dotted path (`answer.text`, `instances.0.input`) reaches into objects and lists, and its value
    is copied, since the outer column remains. A column whose own name contains dots takes precedence. Raises
    `RecordError` for a column that the record lacks, and for a field that would overwrite another column.
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
    path: list[str] = []
    for part in column.split("."):
        keys = _keys(value)
        if part not in keys:
            inside = f" in {'.'.join(path)!r}" if path else ""
            hint = f"{inside}; {nearest(part, keys)}" if keys else f"; found {type(value).__name__}{inside}"
            wanted = ".".join([*path, part])
            raise RecordError(f"no column {wanted!r}{hint}", field=column, reason="missing_column")
        value = value[int(part)] if isinstance(value, list) else value[part]
        path.append(part)
    return value


def _keys(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [key for key in value if isinstance(key, str)]
    return [str(index) for index in range(len(value))] if isinstance(value, list) else []
