"""What became of the records: how many came in, came out, and were dropped under which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from templatekit.errors import RecordError
from templatekit.types import Example, PreferenceExample, TokenizedExample

_ROWS_SHOWN = 5


@dataclass(kw_only=True)
class Counts:
    """What became of the records."""

    rows_in: int = 0
    rows_out: int = 0
    """Rows of which at least one sample came out."""
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows by reason code; of a row that gives several samples each counts."""
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)
    """The numbers of those rows."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """The first message of each reason."""
    truncated: Counter[str] = field(default_factory=Counter)
    """Samples that were shortened, by policy."""
    truncated_rows: dict[str, list[int]] = field(default_factory=dict)
    first_truncated: dict[str, str] = field(default_factory=dict)
    """How long the first of each policy was, and is."""
    untrained_turns: int = 0
    """Assistant turns, in rows that came out, of which nothing is trained: no prompt comes before them, or the template
    marks nothing in them."""
    empty_responses: int = 0
    """Rows whose answer is empty or whitespace: rendered, and worth a look."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Parts of records that the adapter left out, by what they are."""
    equal_pairs: int = 0
    """Preference pairs whose two answers are the same."""
    early_pairs: int = 0
    """Preference pairs that part before their last message."""
    differing_prompts: int = 0
    """Preference pairs, in rows that came out, whose answers stand behind different ids."""
    unread_keys: dict[str, int] = field(default_factory=dict)
    """Keys that the adapter does not read, with the first row that has them."""

    def drop(self, error: RecordError) -> None:
        """Counts a row that does not come out."""
        self.dropped[error.reason] += 1
        if error.row is not None and error.row not in (rows := self.dropped_rows.setdefault(error.reason, []))[-1:]:
            rows.append(error.row)
        self.first_dropped.setdefault(error.reason, str(error))

    def take_back(self, error: RecordError, *, row: bool) -> None:
        """Counts a sample that came out and has no place where it was to go; `row` says whether its row goes too."""
        self.samples -= 1
        self.rows_out -= row
        self.drop(error)

    def add(self, example: Example, *, both: bool = False) -> None:
        """Counts what an example leaves out of its record; of a preference pair one answer is used, or `both` are."""
        if example.left_out:
            self.left_out.update(example.left_out)
        if isinstance(example, PreferenceExample):
            if not both:
                self.left_out["rejected answer"] += 1
            self.equal_pairs += example.chosen == example.rejected
            self.early_pairs += max(len(example.chosen), len(example.rejected)) > 1

    def shorten(self, example: TokenizedExample, source: str | None, before: int) -> None:
        """Counts a sample of `before` tokens that comes out shorter; one that comes out whole is passed over."""
        if example.truncated is None:
            return
        self.truncated[example.truncated] += 1
        self.truncated_rows.setdefault(example.truncated, []).append(example.row)
        place = f"{example.row}" if source is None else f"{source}:{example.row}"
        self.first_truncated.setdefault(example.truncated, f"{place}: {len(example)} of {before} tokens")

    def merge(self, later: Counts) -> None:
        """Adds what became of the records that follow these."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(later, one.name)
            if isinstance(mine, int):
                setattr(self, one.name, mine + theirs)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            else:
                for key, value in theirs.items():
                    if isinstance(value, list):
                        mine.setdefault(key, []).extend(value)
                    else:
                        mine.setdefault(key, value)  # the first of its kind

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """The inverse of `as_dict`; raises `KeyError` for a count that is missing."""
        counts = cls()
        for one in fields(cls):
            of = type(getattr(counts, one.name))
            setattr(counts, one.name, of(values[one.name]))
        return counts

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "samples": self.samples,
            "dropped": dict(self.dropped),
            "dropped_rows": self.dropped_rows,
            "first_dropped": self.first_dropped,
            "truncated": dict(self.truncated),
            "truncated_rows": self.truncated_rows,
            "first_truncated": self.first_truncated,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "untrained_turns": self.untrained_turns,
            "empty_responses": self.empty_responses,
            "left_out": dict(self.left_out),
            "equal_pairs": self.equal_pairs,
            "early_pairs": self.early_pairs,
            "differing_prompts": self.differing_prompts,
            "unread_keys": self.unread_keys,
        }

    def headline(self, *, tokens: bool) -> str:
        """How many rows, samples and tokens; those of tokens only where there is a tokenizer."""
        line = f"rows in: {self.rows_in:,}, rows out: {self.rows_out:,}"
        if self.samples != self.rows_out:
            line += f" as {self.samples:,} samples"
        line += f", dropped: {self.dropped.total():,}"
        if tokens:
            line += f", tokens: {self.tokens:,}, trained tokens: {self.trained_tokens:,}"
        return line

    def lines(self, *, tokens: bool) -> list[str]:
        """The counts in words, the headline first."""
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
            parts = ", ".join(f"{count:,} × {what}" for what, count in self.left_out.most_common())
            lines.append(f"note: left out of the records: {parts}")
        if self.equal_pairs:
            lines.append(f"note: pairs whose chosen and rejected answers are the same: {self.equal_pairs:,}")
        if self.early_pairs:
            lines.append(f"note: pairs that part before the last message: {self.early_pairs:,}")
        if self.differing_prompts:
            lines.append(f"note: pairs whose answers stand behind different prompt ids: {self.differing_prompts:,}")
        if self.unread_keys:
            keys = ", ".join(f"{key} (first in row {row})" for key, row in sorted(self.unread_keys.items()))
            lines.append(f"note: keys that the adapter does not read: {keys}")
        return lines


def _listed(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:_ROWS_SHOWN])) + (", …" if len(rows) > _ROWS_SHOWN else "")
