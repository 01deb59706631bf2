"""The report for a terminal, in colour where it has any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from templatekit.audit.values import LEVELS, Excerpt, Finding, Lengths, Report

if TYPE_CHECKING:
    from rich.text import Text

KINDS_SHOWN = 8
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
_KIND_STYLES = {"template": "dim", "field": "cyan", "computed": "magenta"}
_TRAINED = "bold green"
_HERE = "reverse"
_INDENT = "    │"


class Piece(NamedTuple):
    """Text with a style."""

    text: str
    style: str = ""


def to_text(report: Report) -> str:
    """The report without colours."""
    return "".join(piece.text for piece in pieces(report))


def to_rich(report: Report) -> Text:
    """The report with colours."""
    from rich.text import Text

    text = Text()
    for piece in pieces(report):
        text.append(piece.text, piece.style)
    return text


def pieces(report: Report) -> Iterator[Piece]:
    """The whole report, a newline at its end."""
    for line in (*head_lines(report), *length_lines(report)):
        yield Piece(f"{line}\n")
    for finding in report.findings:
        yield Piece("\n")
        yield from _finding(finding)
    yield Piece("\n")
    if report.clean:
        yield Piece(f"nothing found: {', '.join(report.clean)}\n", "dim")
    for reason in dict.fromkeys(report.not_checked.values()):
        codes = [code for code, why in report.not_checked.items() if why == reason]
        yield Piece(f"not checked: {', '.join(codes)}, which {'need' if len(codes) > 1 else 'needs'} {reason}\n", "dim")
    yield Piece(f"{summary(report)}\n", "bold")


def head_lines(report: Report) -> Iterator[str]:
    """What was read, and with what."""
    left = report.rows - report.usable
    yield f"{report.dataset}: {plural(report.rows, 'row')}" + (f", {left:,} of them unusable" if left else "")
    tokenizer = f", tokenizer {report.tokenizer}" if report.tokenizer else ""
    yield f"adapter {report.adapter or '(none)'}, template {report.template}{tokenizer}, trained: {report.train_on}"
    for other in report.against:
        unusable = f", {other.unusable:,} of them unusable" if other.unusable else ""
        yield f"against {other.dataset}: {plural(other.rows, 'row')}{unusable}"
    if report.tokens:
        trained = report.trained_tokens or 0
        yield f"tokens: {report.tokens:,}, trained: {trained:,} ({percent(trained / report.tokens)})"


def length_lines(report: Report) -> Iterator[str]:
    """How long the texts are."""
    lengths = report.lengths
    if lengths is None:
        return
    yield (
        f"length in {lengths.unit}: "
        + ", ".join(f"{name} {value:,}" for name, value in quantiles(lengths))
        + (f" (row {lengths.longest_row})")
    )
    if lengths.unit == "tokens":
        yield over_line(lengths, report.usable)


def quantiles(lengths: Lengths) -> tuple[tuple[str, int], ...]:
    """The distribution by names."""
    return (
        ("min", lengths.shortest),
        ("median", lengths.median),
        ("95 %", lengths.p95),
        ("99 %", lengths.p99),
        ("max", lengths.longest),
    )


def over_line(lengths: Lengths, rows: int) -> str:
    """How many texts are longer than what."""
    return "longer than " + ", ".join(
        f"{limit:,}: {count:,}" + (f" ({percent(count / rows)})" if count else "")
        for limit, count in lengths.over.items()
    )


def summary(report: Report) -> str:
    """How many findings of each level."""
    counts = {level: sum(1 for finding in report.findings if finding.rule.level == level) for level in LEVELS}
    return ", ".join(plural(count, level) for level, count in counts.items())


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share, never shown as nothing or all where it is not."""
    if share and round(share * 100, 1) == 0:
        return "< 0.1 %"
    if share < 1 and round(share * 100, 1) == 100:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")


def rows_line(finding: Finding) -> str:
    """How many rows, and which."""
    if finding.share is None:
        return ""
    more = ", …" if finding.count > len(finding.rows) else ""
    numbers = f": {', '.join(map(str, finding.rows))}{more}" if finding.rows else ""
    return f"{plural(finding.count, 'row')} ({percent(finding.share)}){numbers}"


def _finding(finding: Finding) -> Iterator[Piece]:
    rule = finding.rule
    yield Piece(f"{rule.level} {rule.code}", _STYLES[rule.level])
    yield Piece(f": {rule.title}\n", "bold")
    if line := rows_line(finding):
        yield Piece(f"  {line}\n")
    yield Piece(f"  {rule.help}\n", "italic")
    for part in finding.parts[:KINDS_SHOWN]:
        first = "" if part.first_row is None else f" (first in row {part.first_row})"
        # Where there is one kind alone, the example says the same.
        detail = f": {one_line(part.detail)}" if part.detail and len(finding.parts) > 1 else ""
        yield Piece(f"  {part.count:>7,} × {one_line(part.what or 'other')}{first}{detail}\n")
    if len(finding.parts) > KINDS_SHOWN:
        yield Piece(f"  and {len(finding.parts) - KINDS_SHOWN:,} other kinds; --json has them all\n")
    if finding.example is not None:
        yield from _example(finding.example)


def _example(example: Excerpt) -> Iterator[Piece]:
    parts = [f"row {example.row}" if example.row is not None else "", one_line(example.detail)]
    if any(parts):
        yield Piece(f"  {': '.join(part for part in parts if part)}\n")
    if not example.runs:
        return
    yield Piece(_INDENT, "dim")
    begins = True
    for piece in excerpt_pieces(example):
        # Each line of the excerpt stands behind the mark that says that it is data.
        for index, line in enumerate(piece.text.split("\n")):
            if index:
                yield Piece(f"\n{_INDENT}", "dim")
                begins = True
            if line:
                if begins:
                    yield Piece(" ")
                    begins = False
                yield Piece(line, piece.style)
    yield Piece("\n")


def marked(example: Excerpt) -> str:
    """The excerpt with ⟦ ⟧ around what is trained and ▶ ◀ around the place."""
    return "".join(piece.text for piece in excerpt_pieces(example))


def excerpt_pieces(example: Excerpt) -> Iterator[Piece]:
    """The same with styles."""
    trained = here = False
    if example.cut_left:
        yield Piece("…", "dim")
    for run in example.runs:
        if here and not run.here:
            yield Piece("◀", _HERE)
        if trained and not run.trained and run.text:
            yield Piece("⟧", _TRAINED)
        if run.text:
            if run.trained and not trained:
                yield Piece("⟦", _TRAINED)
            trained = run.trained
        if run.here and not here:
            yield Piece("▶", _HERE)
        here = run.here
        yield Piece(run.text, _TRAINED if run.trained else _KIND_STYLES[run.kind])
    if here:
        yield Piece("◀", _HERE)
    if trained:
        yield Piece("⟧", _TRAINED)
    if example.cut_right:
        yield Piece("…", "dim")


def one_line(text: str) -> str:
    """Text that may hold newlines, on one line."""
    return " ".join(text.split())
