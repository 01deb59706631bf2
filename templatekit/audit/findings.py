"""Counts the occurrences of a rule in bounded memory: some row numbers, some kinds, one example."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from templatekit.audit.context import AuditContext
from templatekit.audit.excerpts import excerpt_of, visible
from templatekit.audit.report import Excerpt, Finding, FindingPart
from templatekit.audit.rule import Occurrence, Rule

MAX_KINDS = 1000
"""Kinds that are counted separately for one rule; all further ones are counted together."""
OTHER_KINDS = "others"
MAX_KIND_LENGTH = 200
"""Characters of a kind's name."""


@dataclass(slots=True)
class _Kind:
    first_row: int | None
    detail: str
    count: int = 0


@dataclass(slots=True)
class FindingCounter:
    """The occurrences of one rule so far."""

    rule: Rule
    rows_shown: int
    """Number of row numbers to store."""
    count: int = 0
    rows: list[int] = field(default_factory=list)
    kinds: dict[str, _Kind] = field(default_factory=dict)
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
                self._kind(occurrence, row).count += 1

    def _kind(self, occurrence: Occurrence, row: int | None) -> _Kind:
        name = visible(occurrence.kind[:MAX_KIND_LENGTH])
        if name not in self.kinds:
            if len(self.kinds) >= MAX_KINDS:
                return self.kinds.setdefault(OTHER_KINDS, _Kind(row, ""))
            self.kinds[name] = _Kind(row, visible(occurrence.detail))
        return self.kinds[name]

    def finding(self, rows: int) -> Finding:
        """The finding, of a data set with this many rows."""
        kinds = sorted(self.kinds.items(), key=lambda item: -item[1].count)
        parts = tuple(
            FindingPart(what=name, count=kind.count, first_row=kind.first_row, detail=kind.detail)
            for name, kind in kinds
        )
        return Finding(
            rule=self.rule,
            count=self.count,
            share=self.count / rows if self.rule.check_row is not None and rows else None,
            rows=tuple(self.rows),
            parts=parts if any(part.what for part in parts) else (),
            example=self.example,
        )
