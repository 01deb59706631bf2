"""The report as text for a terminal, with or without colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from templatekit.audit.report import Excerpt, Finding, Lengths, Report
from templatekit.audit.rule import LEVELS
from templatekit.views import visible

if TYPE_CHECKING:
    from rich.text import Text

_StyledText: TypeAlias = "str | Text | tuple[str, str]"
"""Text of the report, with or without a style."""

KINDS_SHOWN = 8
_LEVEL_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
_EXCERPT_STYLES = {
    "template": "dim",
    "field": "cyan",
    "computed": "magenta",
    "trained": "bold green",
    "marked": "reverse",
    "ellipsis": "dim",
}
_INDENT = "    │"


def to_text(report: Report) -> str:
    """The report without colours."""
    return to_rich(report).plain


def to_rich(report: Report) -> Text:
    """The report with colours, and with a newline at its end."""
    from rich.text import Text

    return Text.assemble(*_report(report))


def _report(report: Report) -> Iterator[_StyledText]:
    for line in (*header_lines(report), *length_lines(report)):
        yield f"{visible(line)}\n"
    for finding in report.findings:
        yield "\n"
        yield from _finding(finding)
    yield "\n"
    if report.clean:
        yield f"nothing found: {', '.join(report.clean)}\n", "dim"
    for reason in dict.fromkeys(report.not_checked.values()):
        codes = [code for code, why in report.not_checked.items() if why == reason]
        need = "need" if len(codes) > 1 else "needs"
        yield f"not checked: {', '.join(codes)}, which {need} {reason}\n", "dim"
    yield f"{summary(report)}\n", "bold"


def header_lines(report: Report) -> Iterator[str]:
    """The data sets, the options and the number of tokens."""
    count = report.rows - report.usable
    yield f"{report.dataset}: {plural(report.rows, 'row')}" + (f", {count:,} of them unusable" if count else "")
    tokenizer = f", tokenizer {report.tokenizer}" if report.tokenizer else ""
    yield f"adapter {report.adapter or '(none)'}, template {report.template}{tokenizer}, trained: {report.train_on}"
    for other in report.against:
        unusable = f", {other.unusable:,} of them unusable" if other.unusable else ""
        yield f"against {other.dataset}: {plural(other.rows, 'row')}{unusable}"
    if report.tokens:
        trained = report.trained_tokens or 0
        yield f"tokens: {report.tokens:,}, trained: {trained:,} ({percent(trained / report.tokens)})"


def length_lines(report: Report) -> Iterator[str]:
    """The distribution of lengths."""
    lengths = report.lengths
    if lengths is None:
        return
    yield (
        f"length in {lengths.unit}: "
        + ", ".join(f"{name} {value:,}" for name, value in quantiles(lengths))
        + f" (row {lengths.longest_row})"
    )
    if lengths.unit == "tokens":
        yield over_line(lengths, report.usable)


def quantiles(lengths: Lengths) -> tuple[tuple[str, int], ...]:
    """The names and values of a distribution."""
    return (
        ("min", lengths.shortest),
        ("median", lengths.median),
        ("95 %", lengths.p95),
        ("99 %", lengths.p99),
        ("max", lengths.longest),
    )


def over_line(lengths: Lengths, rows: int) -> str:
    """How many texts are longer than each limit."""
    return "longer than " + ", ".join(
        f"{limit:,}: {count:,}" + (f" ({percent(count / rows)})" if count else "")
        for limit, count in lengths.over.items()
    )


def summary(report: Report) -> str:
    """The number of findings of each level."""
    counts = {level: sum(1 for finding in report.findings if finding.rule.level == level) for level in LEVELS}
    return ", ".join(plural(count, level) for level, count in counts.items())


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share in percent; only an exact 0 is shown as 0.0 %, and only an exact 1 as 100.0 %."""
    if share and round(share * 100, 1) == 0:
        return "< 0.1 %"
    if share < 1 and round(share * 100, 1) == 100:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")


def rows_line(finding: Finding) -> str:
    """The number of rows with a finding, and the first of them."""
    if finding.share is None:
        return ""
    more = ", …" if finding.count > len(finding.rows) else ""
    numbers = f": {', '.join(map(str, finding.rows))}{more}" if finding.rows else ""
    return f"{plural(finding.count, 'row')} ({percent(finding.share)}){numbers}"


def _finding(finding: Finding) -> Iterator[_StyledText]:
    rule = finding.rule
    yield f"{rule.level} {rule.code}", _LEVEL_STYLES[rule.level]
    yield f": {rule.title}\n", "bold"
    if line := rows_line(finding):
        yield f"  {line}\n"
    yield f"  {rule.help}\n", "italic"
    for part in finding.parts[:KINDS_SHOWN]:
        first = "" if part.first_row is None else f" (first in row {part.first_row})"
        # The detail of a single kind is that of the example.
        detail = f": {one_line(part.detail)}" if part.detail and len(finding.parts) > 1 else ""
        yield f"  {part.count:>7,} × {one_line(part.what or 'other')}{first}{detail}\n"
    if len(finding.parts) > KINDS_SHOWN:
        yield f"  and {len(finding.parts) - KINDS_SHOWN:,} other kinds; --json has them all\n"
    if finding.example is not None:
        yield from _example(finding.example)


def example_line(example: Excerpt) -> str:
    """The row and the detail of an example."""
    parts = [f"row {example.row}" if example.row is not None else "", one_line(example.detail)]
    return ": ".join(filter(None, parts))


def _example(example: Excerpt) -> Iterator[_StyledText]:
    from rich.text import Text

    if line := example_line(example):
        yield f"  {line}\n"
    if example.runs:
        excerpt = Text.assemble(*((segment.text, _EXCERPT_STYLES[segment.style]) for segment in example.segments()))
        # Each line of the excerpt follows a mark, so that data cannot pass for a line of the report.
        for excerpt_line in excerpt.split(allow_blank=True):
            yield _INDENT, "dim"
            yield Text.assemble(" " if excerpt_line else "", excerpt_line, "\n")


def one_line(text: str) -> str:
    """The text on one line: each run of whitespace becomes a space."""
    return " ".join(text.split())
