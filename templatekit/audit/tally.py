"""Counts what rules find, in bounded memory: some row numbers, some kinds, one example."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from templatekit.audit.excerpts import excerpt_of, visible
from templatekit.audit.values import LEVELS, Excerpt, Finding, Hit, Part, Rule, Setup

KINDS = 1000
"""Kinds that one rule tells apart; further ones are counted together."""
OTHERS = "others"
LONGEST = 200
"""Characters of a kind's name."""


@dataclass(slots=True)
class _Kind:
    first_row: int | None
    detail: str
    count: int = 0


@dataclass(slots=True)
class Tally:
    """What one rule has found so far."""

    rule: Rule
    shown: int
    """Row numbers to keep."""
    count: int = 0
    rows: list[int] = field(default_factory=list)
    kinds: dict[str, _Kind] = field(default_factory=dict)
    example: Excerpt | None = None

    def add(self, hits: Iterable[Hit], row: int | None, setup: Setup) -> None:
        """What was found in a row, which counts once, and once for each kind."""
        seen: set[str] = set()
        for hit in hits:
            if not self.count:
                self.example = excerpt_of(self.rule.explain(hit, setup) if self.rule.explain else hit, row)
            if not seen or row is None:
                self.count += 1
                if row is not None and len(self.rows) < self.shown:
                    self.rows.append(row)
            if hit.what not in seen:
                seen.add(hit.what)
                self._kind(hit, row).count += 1

    def _kind(self, hit: Hit, row: int | None) -> _Kind:
        what = visible(hit.what[:LONGEST])
        if what not in self.kinds:
            if len(self.kinds) >= KINDS:
                return self.kinds.setdefault(OTHERS, _Kind(row, ""))
            self.kinds[what] = _Kind(row, visible(hit.detail))
        return self.kinds[what]

    def finding(self, rows: int) -> Finding:
        """The result, out of so many rows."""
        kinds = sorted(self.kinds.items(), key=lambda item: -item[1].count)
        parts = tuple(
            Part(what=what, count=kind.count, first_row=kind.first_row, detail=kind.detail) for what, kind in kinds
        )
        return Finding(
            rule=self.rule,
            count=self.count,
            share=self.count / rows if self.rule.row is not None and rows else None,
            rows=tuple(self.rows),
            parts=parts if any(part.what for part in parts) else (),
            example=self.example,
        )


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The most severe first, and of one level the most frequent."""
    return tuple(sorted(findings, key=lambda finding: (LEVELS.index(finding.rule.level), -finding.count)))
