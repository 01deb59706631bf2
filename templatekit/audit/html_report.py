"""The report as one self-contained HTML page: it loads no script, font or picture."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from templatekit.audit.report import Excerpt, ExcerptRun, Finding, Lengths, Report
from templatekit.audit.text_report import (
    example_line,
    header_lines,
    one_line,
    over_line,
    percent,
    plural,
    quantiles,
    rows_line,
    summary,
)

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1f23; --soft: #5a6270; --line: #d9dde3; --box: #f6f7f9;
  --error: #b3261e; --warning: #8a5a00; --note: #1f5fa8; --field: #0a5c9e; --computed: #8a2b8a;
  --trained: #0b5a2a; --trained-back: #d3f0dc; --here: #f2b31a; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e4e7eb; --soft: #9aa3af; --line: #333a43;
  --box: #1d2127; --error: #ff8a80; --warning: #f0b955; --note: #82b7f5; --field: #7cc0f5; --computed: #dd9bdd;
  --trained: #a6e6bb; --trained-back: #143a24; --here: #b98900; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0; }
p { margin: .35rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .9rem; }
nav { margin: 1.25rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 4rem; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
a { color: inherit; }
section { border: 1px solid var(--line); border-left: .35rem solid var(--level); border-radius: .4rem;
  padding: .9rem 1.1rem; margin: 1rem 0; }
.error { --level: var(--error); } .warning { --level: var(--warning); } .note { --level: var(--note); }
.level { color: var(--level); font-weight: 700; white-space: nowrap; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
pre { background: var(--box); border-radius: .3rem; padding: .7rem .9rem; margin: .5rem 0 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.55 ui-monospace, monospace; max-height: 24rem; overflow-y: auto; }
.template { color: var(--soft); } .field { color: var(--field); } .computed { color: var(--computed); }
.trained { color: var(--trained); background: var(--trained-back); }
mark { background: none; color: inherit; box-shadow: inset 0 -.2em var(--here), 0 0 0 1px var(--here); }
mark:empty { background: var(--here); padding: 0 .15rem; }
.bar { display: inline-block; min-width: 1px; max-width: 30rem; height: .6rem; background: var(--note);
  border-radius: .15rem; }
"""


def to_html(report: Report) -> str:
    """The report as an HTML page."""
    title = f"Audit of {report.dataset}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The browser loads and runs nothing, even if some text were not escaped.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(one_line(title))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(_body(report, title))}</body>\n</html>\n"
    )


def _body(report: Report, title: str) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>\n"
    for line in header_lines(report):
        yield f'<p class="soft">{escape(line)}</p>\n'
    yield f"<p><strong>{escape(summary(report))}</strong></p>\n"
    if report.lengths is not None:
        yield from _lengths(report.lengths, report.usable)
    if report.findings:
        yield from _overview(report)
        yield _LEGEND
    for finding in report.findings:
        yield from _section(finding)
    if report.clean:
        yield f'<p class="soft">Nothing found by: {escape(", ".join(report.clean))}.</p>\n'
    if report.not_checked:
        reasons = ", ".join(f"{code} (needs {why})" for code, why in report.not_checked.items())
        yield f'<p class="soft">Not checked: {escape(reasons)}.</p>\n'


def _overview(report: Report) -> Iterator[str]:
    yield "<nav><table>\n<tr><th>level</th><th>finding</th>"
    yield '<th class="number">rows</th><th class="number">share</th></tr>\n'
    for finding in report.findings:
        rule = finding.rule
        rows, share = ("", "") if finding.share is None else (f"{finding.count:,}", percent(finding.share))
        yield (
            f'<tr class="{rule.level}"><td class="level">{rule.level}</td>'
            f'<td><a href="#{rule.code}">{escape(rule.code)}</a>: {escape(rule.title)}</td>'
            f'<td class="number">{rows}</td><td class="number">{share}</td></tr>\n'
        )
    yield "</table></nav>\n"


_LEGEND = (
    '<p class="soft">In the examples: <span class="template">template text</span>, '
    '<span class="field">data</span>, <span class="trained">trained</span>, <mark>what was found</mark>.</p>\n'
)


def _section(finding: Finding) -> Iterator[str]:
    rule = finding.rule
    yield f'<section class="{rule.level}" id="{rule.code}">\n'
    yield f'<h2><span class="level">{rule.level}</span> {escape(rule.code)}: {escape(rule.title)}</h2>\n'
    if line := rows_line(finding):
        yield f"<p>{escape(line)}</p>\n"
    yield f'<p class="soft">{escape(rule.help)}</p>\n'
    if finding.parts:
        yield from _parts(finding)
    if finding.example is not None:
        yield from _example(finding.example)
    yield "</section>\n"


def _parts(finding: Finding) -> Iterator[str]:
    open_attribute = " open" if len(finding.parts) <= 12 else ""
    yield f"<details{open_attribute}><summary>{plural(len(finding.parts), 'kind')}</summary>\n<table>\n"
    yield '<tr><th class="number">rows</th><th>what</th><th class="number">first row</th><th></th></tr>\n'
    for part in finding.parts:
        first = "" if part.first_row is None else str(part.first_row)
        yield (
            f'<tr><td class="number">{part.count:,}</td><td>{escape(one_line(part.what or "other"))}</td>'
            f'<td class="number">{first}</td><td class="soft">{escape(one_line(part.detail))}</td></tr>\n'
        )
    yield "</table></details>\n"


def _example(example: Excerpt) -> Iterator[str]:
    yield f"<p>{escape(example_line(example))}</p>\n"
    if example.runs:
        yield "<pre>" + ("…" if example.cut_left else "")
        for run in example.runs:
            yield _run(run)
        yield ("…" if example.cut_right else "") + "</pre>\n"


def _run(run: ExcerptRun) -> str:
    style = "trained" if run.trained else run.kind
    text = f"<mark>{escape(run.text)}</mark>" if run.here else escape(run.text)
    if not run.text:
        return text
    title = f"{run.origin}, trained" if run.trained else run.origin
    return f'<span class="{style}" title="{escape(title)}">{text}</span>'


def _lengths(lengths: Lengths, texts: int) -> Iterator[str]:
    yield f"<details open><summary>length in {lengths.unit}</summary>\n<table>\n"
    for name, value in quantiles(lengths):
        width = 50 * value / max(lengths.longest, 1)
        yield (
            f'<tr><th>{name}</th><td class="number">{value:,}</td>'
            f'<td><span class="bar" style="width:{width:.2f}vw"></span></td></tr>\n'
        )
    yield f'</table>\n<p class="soft">the longest: row {lengths.longest_row}</p>\n'
    if lengths.unit == "tokens":
        yield f'<p class="soft">{escape(over_line(lengths, texts))}</p>\n'
    yield "</details>\n"
