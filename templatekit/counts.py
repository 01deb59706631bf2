"""What became of the records: how many came in, came out, and were dropped under which reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from templatekit.errors import RecordError

_ROWS_SHOWN = 5


@dataclass(kw_only=True)
class Counts:
    """What became of the records."""

    rows_in: int = 0
    rows_out: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows by reason code."""
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)
    """The numbers of those rows."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """The first message of each reason."""
    empty_responses: int = 0
    """Rows whose answer is empty or whitespace: rendered, and worth a look."""
    unread_keys: dict[str, int] = field(default_factory=dict)
    """Keys that the adapter does not read, with the first row that has them."""

    def drop(self, error: RecordError) -> None:
        """Counts a row that does not come out."""
        self.dropped[error.reason] += 1
        if error.row is not None:
            self.dropped_rows.setdefault(error.reason, []).append(error.row)
        self.first_dropped.setdefault(error.reason, str(error))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dropped": dict(self.dropped),
            "dropped_rows": self.dropped_rows,
            "first_dropped": self.first_dropped,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "empty_responses": self.empty_responses,
            "unread_keys": self.unread_keys,
        }

    def lines(self, *, tokens: bool) -> list[str]:
        """The counts in words; those of tokens only where there is a tokenizer."""
        line = f"rows in: {self.rows_in:,}, rows out: {self.rows_out:,}, dropped: {self.dropped.total():,}"
        if tokens:
            line += f", tokens: {self.tokens:,}, trained tokens: {self.trained_tokens:,}"
        lines = [line]
        for reason, count in self.dropped.most_common():
            rows = self.dropped_rows.get(reason, [])
            shown = ", ".join(map(str, rows[:_ROWS_SHOWN])) + (", …" if len(rows) > _ROWS_SHOWN else "")
            lines.append(f"dropped {count:,} × {reason} (rows {shown}); the first: {self.first_dropped[reason]}")
        if self.empty_responses:
            lines.append(f"note: rows with an empty answer: {self.empty_responses:,}")
        if self.unread_keys:
            keys = ", ".join(f"{key} (first in row {row})" for key, row in sorted(self.unread_keys.items()))
            lines.append(f"note: keys that the adapter does not read: {keys}")
        return lines
