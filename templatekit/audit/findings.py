"""Counts in bounded memory: the occurrences of a rule, with one example, and the lengths of texts."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from templatekit.audit.context import AuditContext
from templatekit.audit.excerpts import excerpt_of
from templatekit.audit.report import Excerpt, Finding, FindingPart, Lengths
from templatekit.audit.rule import Occurrence, Rule
from templatekit.views import visible

MAX_KINDS = 1000
"""Kinds that are counted separately for one rule; all further ones are counted together."""
OTHER_KINDS = "others"
MAX_KIND_LENGTH = 200
"""Characters of a kind's name."""
LIMITS = (512, 1024, 2048, 4096)
MAX_EXACT = 65_536
"""Lengths up to this are counted exactly, longer ones by their first three digits."""


@dataclass(slots=True)
class FindingCounter:
    """The occurrences of one rule so far."""

    rule: Rule
    rows_shown: int
    """Number of row numbers to store."""
    count: int = 0
    rows: list[int] = field(default_factory=list)
    parts: dict[str, FindingPart] = field(default_factory=dict)
    example: Excerpt | None = None

    def add(self, occurrences: Iterable[Occurrence], row: int | None, context: AuditContext) -> None:
        """Count the occurrences of one row. The row counts once, and once for each kind."""
        seen: set[str] = set()
        for occurrence in occurrences:
            if not self.count:
                shown = self.rule.explain(occurrence, context) if self.rule.explain else occurrence
                self.example = excerpt_of(shown, row)
            if not seen or row is None:
                self.count += 1
                if row is not None and len(self.rows) < self.rows_shown:
                    self.rows.append(row)
            if occurrence.kind not in seen:
                seen.add(occurrence.kind)
                self._part(occurrence, row).count += 1

    def _part(self, occurrence: Occurrence, row: int | None) -> FindingPart:
        name, detail = visible(occurrence.kind[:MAX_KIND_LENGTH]), occurrence.detail
        if name not in self.parts and len(self.parts) >= MAX_KINDS:
            name, detail = OTHER_KINDS, ""
        if name not in self.parts:
            self.parts[name] = FindingPart(what=name, first_row=row, detail=visible(detail))
        return self.parts[name]

    def finding(self, rows: int) -> Finding:
        """The finding, for a data set with this many rows."""
        parts = tuple(sorted(self.parts.values(), key=lambda part: -part.count))
        return Finding(
            rule=self.rule,
            count=self.count,
            share=self.count / rows if self.rule.check_row is not None and rows else None,
            rows=tuple(self.rows),
            parts=parts if any(part.what for part in parts) else (),
            example=self.example,
        )


class LengthCounter:
    """Counts lengths. Memory is bounded by the number of different lengths, not of texts."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._longest = (-1, 0)

    def add(self, length: int, row: int) -> None:
        """Count the length of one text."""
        if length > self._longest[0]:
            self._longest = (length, row)
        if length > MAX_EXACT:
            digits = 10 ** (len(str(length)) - 3)
            length -= length % digits
        self._counts[length] += 1

    def result(self, unit: Literal["tokens", "characters"]) -> Lengths | None:
        """The distribution; None if there were no texts."""
        if not self._counts:
            return None
        ordered = sorted(self._counts.items())
        cumulative = list(accumulate(count for _, count in ordered))

        def quantile(percent: int) -> int:
            """The smallest length that this percentage of texts does not exceed."""
            rank = -(-cumulative[-1] * percent // 100)
            return ordered[bisect_left(cumulative, rank)][0]

        return Lengths(
            unit=unit,
            shortest=ordered[0][0],
            median=quantile(50),
            p95=quantile(95),
            p99=quantile(99),
            longest=self._longest[0],
            longest_row=self._longest[1],
            over={limit: sum(count for length, count in ordered if length > limit) for limit in LIMITS},
        )
