"""The report of an audit, also as JSON; docs/audit.md describes the keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from templatekit.audit.rule import LEVELS, Level, Rule

JSON_VERSION = 1
"""The version of the JSON. It rises when a key changes its meaning or is removed; keys may be added at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcerptRun:
    """Consecutive characters of an excerpt: of one origin, all trained or not, all inside the occurrence or outside."""

    text: str
    """Control and format characters are made visible."""
    kind: Literal["template", "field", "computed"]
    origin: str
    trained: bool
    here: bool
    """Whether the characters are inside the occurrence."""


class ExcerptSegment(NamedTuple):
    """Text of an excerpt to display in one style: of a run, or one of the marks between runs."""

    text: str
    style: Literal["template", "field", "computed", "trained", "marked", "ellipsis"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """The example that a finding shows."""

    row: int | None
    """None where the rule is not about rows."""
    detail: str
    runs: tuple[ExcerptRun, ...] = ()
    cut_left: bool = False
    """More text precedes the excerpt."""
    cut_right: bool = False
    """More text follows the excerpt."""

    def segments(self) -> Iterator[ExcerptSegment]:
        """The text with ⟦ ⟧ around trained text, ▶ ◀ around the occurrence, and … where it is cut."""
        trained = here = False
        if self.cut_left:
            yield ExcerptSegment("…", "ellipsis")
        for run in (*self.runs, None):
            was_here, here = here, run is not None and run.here
            was_trained = trained
            if run is None or run.text:  # a run without text continues the one before it
                trained = run is not None and run.trained
            if was_here and not here:
                yield ExcerptSegment("◀", "marked")
            if trained != was_trained:
                yield ExcerptSegment("⟦" if trained else "⟧", "trained")
            if here and not was_here:
                yield ExcerptSegment("▶", "marked")
            if run is not None:
                yield ExcerptSegment(run.text, "trained" if run.trained else run.kind)
        if self.cut_right:
            yield ExcerptSegment("…", "ellipsis")

    def marked_text(self) -> str:
        """The segments as one text."""
        return "".join(segment.text for segment in self.segments())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "row": self.row,
            "detail": self.detail,
            "text": self.marked_text(),
            "runs": [asdict(run) for run in self.runs],
        }


@dataclass(slots=True, kw_only=True)
class FindingPart:
    """The occurrences of one kind within a finding."""

    what: str
    """The name of the kind."""
    count: int = 0
    first_row: int | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """All that one rule found in the data set."""

    rule: Rule
    count: int
    """The count of rows, or of occurrences if the rule is not about rows."""
    share: float | None
    """The share of all rows; None where the rule is not about rows."""
    rows: tuple[int, ...]
    """The first row numbers."""
    parts: tuple[FindingPart, ...]
    """The kinds, the most frequent first; empty if the rule distinguishes none. A row may count in several kinds."""
    example: Excerpt | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "code": self.rule.code,
            "level": self.rule.level,
            "title": self.rule.title,
            "help": self.rule.help,
            "count": self.count,
            "share": self.share,
            "rows": list(self.rows),
            "parts": [asdict(part) for part in self.parts],
            "example": self.example.as_dict() if self.example else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The distribution of text lengths. Above 65,536 all but the longest are rounded down to three digits."""

    unit: Literal["tokens", "characters"]
    shortest: int
    median: int
    p95: int
    p99: int
    longest: int
    longest_row: int
    over: dict[int, int]
    """How many texts are longer than 512, 1,024, …"""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "over": {str(limit): count for limit, count in self.over.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedDataset:
    """Another data set that the rows were compared with."""

    dataset: str
    rows: int
    unusable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of an audit."""

    dataset: str
    adapter: str | None
    template: str
    tokenizer: str | None
    train_on: str
    max_length: int | None
    rows: int
    usable: int
    tokens: int | None
    trained_tokens: int | None
    lengths: Lengths | None
    """None where no row is usable."""
    against: tuple[ComparedDataset, ...]
    findings: tuple[Finding, ...]
    """The most severe first; within a level, the most frequent first."""
    clean: tuple[str, ...]
    """Codes of the rules that found nothing."""
    not_checked: dict[str, str]
    """Codes of the rules that could not be checked, with the options that they need."""

    def at_or_above(self, level: Level) -> int:
        """The number of findings that are at least this severe."""
        return sum(1 for finding in self.findings if LEVELS.index(finding.rule.level) <= LEVELS.index(level))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; docs/audit.md describes the keys."""
        return {
            "version": JSON_VERSION,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "lengths": self.lengths.as_dict() if self.lengths else None,
            "against": [asdict(other) for other in self.against],
            "findings": [finding.as_dict() for finding in self.findings],
            "clean": list(self.clean),
        }
