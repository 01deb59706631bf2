"""`Counts`: how many records came in, came out as samples, and were dropped, by reason code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from templatekit.errors import RecordError
from templatekit.types import Example, PreferenceExample, TokenizedExample

_MAX_ROWS_SHOWN = 5
_MAX_KEYS, _MAX_KEYS_SHOWN = 1000, 40
OTHER_KEYS = "… and others"
"""Stands for all keys after the first `_MAX_KEYS`: where keys are data, every row may have others."""


@dataclass(kw_only=True)
class Counts:
    """How many records were read, and how many gave samples or were dropped.

    To find why a row was dropped, look for it in `dropped_rows`, whose keys are the reason codes.
    """

    rows_in: int = 0
    rows_out: int = 0
    """Rows that gave at least one sample."""
    samples: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of dropped rows and samples, by reason code."""
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)
    """The row numbers, by reason code."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """The first error message, by reason code."""
    truncated: Counter[str] = field(default_factory=Counter)
    """Number of shortened samples, by truncation policy."""
    truncated_rows: dict[str, list[int]] = field(default_factory=dict)
    first_truncated: dict[str, str] = field(default_factory=dict)
    """Length of the first shortened sample before and after, by truncation policy."""
    tokens: int = 0
    trained_tokens: int = 0
    untrained_turns: int = 0
    """Turns of an assistant without a trained token, in rows that gave samples: no prompt comes before the turn, or the
    template marks no target in it.
    """
    empty_responses: int = 0
    """Rows with an answer that is empty or whitespace. They are rendered, but worth a look."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of parts of records that the adapter left out, by their description."""
    equal_pairs: int = 0
    """Preference pairs with two equal answers."""
    early_pairs: int = 0
    """Preference pairs whose conversations differ before their last message."""
    differing_prompts: int = 0
    """Preference pairs, in rows that came out, whose answers follow different prompt ids."""
    unread_keys: dict[str, int] = field(default_factory=dict)
    """The first row that has the key, by key that the adapter does not read: a bounded number, then `OTHER_KEYS`."""

    def drop(self, error: RecordError) -> None:
        """Count a row, or a sample of it, that is dropped."""
        self.dropped[error.reason] += 1
        if error.row is not None and error.row not in (rows := self.dropped_rows.setdefault(error.reason, []))[-1:]:
            rows.append(error.row)
        self.first_dropped.setdefault(error.reason, str(error))

    def retract(self, error: RecordError, *, whole_row: bool) -> None:
        """Count as dropped a sample that came out of the pipeline but that the exporter refuses.

        `whole_row` means that no other sample of its row is left.
        """
        self.samples -= 1
        self.rows_out -= whole_row
        self.drop(error)

    def add_example(self, example: Example, *, both_answers: bool = False) -> None:
        """Count what an example leaves out of its record, and how a preference pair's answers relate.

        One answer of a pair is used, or `both_answers`.
        """
        if example.left_out:
            self.left_out.update(example.left_out)
        if isinstance(example, PreferenceExample):
            if not both_answers:
                self.left_out["rejected answer"] += 1
            self.equal_pairs += example.chosen == example.rejected
            self.early_pairs += max(len(example.chosen), len(example.rejected)) > 1

    def add_unread(self, key: str, row: int) -> None:
        """Count a key that the adapter does not read; only its first row is kept."""
        known = len(self.unread_keys) < _MAX_KEYS or key in self.unread_keys
        self.unread_keys.setdefault(key if known else OTHER_KEYS, row)

    def add_truncated(self, example: TokenizedExample, source: str | None, before: str) -> None:
        """Count a shortened sample that had `before` tokens, in words; a whole sample is not counted."""
        if example.truncated is None:
            return
        self.truncated[example.truncated] += 1
        self.truncated_rows.setdefault(example.truncated, []).append(example.row)
        row = f"{example.row}" if source is None else f"{source}:{example.row}"
        self.first_truncated.setdefault(example.truncated, f"{row}: {len(example)} of {before} tokens")

    def merge(self, later: Counts) -> None:
        """Add the counts of the records that follow these."""
        for field_ in fields(self):
            mine, theirs = getattr(self, field_.name), getattr(later, field_.name)
            if isinstance(mine, int):
                setattr(self, field_.name, mine + theirs)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            elif mine is self.unread_keys:
                for key, row in theirs.items():
                    self.add_unread(key, row)
            else:
                for key, value in theirs.items():
                    if isinstance(value, list):
                        mine.setdefault(key, []).extend(value)
                    else:
                        mine.setdefault(key, value)  # the first one stays

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """The inverse of `as_dict`; raises `KeyError` where a count is missing."""
        counts = cls()
        for field_ in fields(cls):
            kind = type(getattr(counts, field_.name))
            setattr(counts, field_.name, kind(values[field_.name]))
        return counts

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON holds them."""
        values = {field_.name: getattr(self, field_.name) for field_ in fields(Counts)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}

    def headline(self, *, tokens: bool) -> str:
        """One line: rows, samples and, with a tokenizer, `tokens`."""
        line = f"rows in: {self.rows_in:,}, rows out: {self.rows_out:,}"
        if self.samples != self.rows_out:
            line += f" as {self.samples:,} samples"
        line += f", dropped: {self.dropped.total():,}"
        if tokens:
            line += f", tokens: {self.tokens:,}, trained tokens: {self.trained_tokens:,}"
        return line

    def lines(self, *, tokens: bool) -> list[str]:
        """The counts in words, a line for each; the headline first."""
        lines = [self.headline(tokens=tokens)]
        for reason, count in self.dropped.most_common():
            rows = _listed(self.dropped_rows.get(reason, []))
            lines.append(f"dropped {count:,} × {reason} (rows {rows}); the first: {self.first_dropped[reason]}")
        for policy, count in self.truncated.most_common():
            rows = _listed(self.truncated_rows.get(policy, []))
            lines.append(f"shortened {count:,} × {policy} (rows {rows}); the first: {self.first_truncated[policy]}")
        if self.untrained_turns:
            lines.append(f"note: assistant turns without a prompt before them, untrained: {self.untrained_turns:,}")
        if self.empty_responses:
            lines.append(f"note: rows with an empty answer: {self.empty_responses:,}")
        if self.left_out:
            left_out = ", ".join(f"{count:,} × {what}" for what, count in self.left_out.most_common())
            lines.append(f"note: left out of the records: {left_out}")
        if self.equal_pairs:
            lines.append(f"note: pairs whose chosen and rejected answers are the same: {self.equal_pairs:,}")
        if self.early_pairs:
            lines.append(f"note: pairs that differ before the last message: {self.early_pairs:,}")
        if self.differing_prompts:
            lines.append(f"note: pairs whose answers follow different prompt ids: {self.differing_prompts:,}")
        if self.unread_keys:
            named = sorted((key, row) for key, row in self.unread_keys.items() if key != OTHER_KEYS)
            keys = ", ".join(f"{key} (first in row {row})" for key, row in named[:_MAX_KEYS_SHOWN])
            if OTHER_KEYS in self.unread_keys:
                keys += f" and more than {len(named) - _MAX_KEYS_SHOWN:,} others"
            elif len(named) > _MAX_KEYS_SHOWN:
                keys += f" and {len(named) - _MAX_KEYS_SHOWN:,} others"
            lines.append(f"note: keys that the adapter does not read: {keys}")
        return lines


def _listed(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:_MAX_ROWS_SHOWN])) + (", …" if len(rows) > _MAX_ROWS_SHOWN else "")
