"""A rule of the audit, and the occurrences that it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from templatekit.audit.context import AuditContext
from templatekit.audit.rows import AuditedRow, AuditedSample

Level: TypeAlias = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""The most severe first."""

Requirement: TypeAlias = Literal["tokenizer", "max_length", "against", "shared"]
"""An option without which a rule has nothing to examine."""


class Occurrence(NamedTuple):
    """One occurrence of the problem that a rule looks for."""

    kind: str = ""
    """The kind of problem, for rules that distinguish several; the report counts each kind separately."""
    detail: str = ""
    """Facts that the excerpt does not show."""
    sample: AuditedSample | None = None
    start: int | None = None
    """Start of the occurrence in the sample's text; None for the whole text."""
    end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of problem, and the functions that find it. They are pure: equal rows give equal occurrences."""

    code: str
    level: Level
    title: str
    help: str
    """One sentence: what the problem means, and what to do."""
    requires: tuple[Requirement, ...] = ()
    check_row: Callable[[AuditedRow, AuditContext], Iterable[Occurrence]] | None = None
    check_template: Callable[[AuditContext], Iterable[Occurrence]] | None = None
    """Called once, for problems of the template or the tokenizer."""
    explain: Callable[[Occurrence, AuditContext], Occurrence] | None = None
    """Adds position and detail to the one occurrence that is shown, where they are too expensive for all."""
