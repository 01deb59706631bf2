"""The figures of `benchmarks.render` that README shows: kept in a file, told as a table, drawn as a picture.

usage: python -m benchmarks.results

Writes README's table and docs/render.svg anew from benchmarks/results.json, which
`python -m benchmarks.render --trl --save` leaves. The picture is written by hand, a few rectangles: it is small, the
same for every version of every library, and takes the colours of a dark page.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README, PICTURE = ROOT / "benchmarks" / "results.json", ROOT / "README.md", ROOT / "docs" / "render.svg"
BEGIN, END = "<!-- figures: python -m benchmarks.results writes them -->\n", "<!-- end of figures -->\n"
COMMAND = "python -m benchmarks.render --trl --save"
OURS = "templatekit"
_LIBRARIES = ("tokenizers", "transformers", "trl")


class SetResult(NamedTuple):
    """What was measured on a set."""

    name: str
    rows: int
    tokens: int
    """Of a text, on average."""
    costs: Mapping[str, float]
    """By contender: µs of processor time a row, of all cores; the first is what the others are set beside."""


def machine() -> str:
    """What ran it, in words."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    count = os.cpu_count() or 1
    cores = f"{count} cores" + (" busy with other work" if os.getloadavg()[0] > count + 1 else "")
    python = ".".join(map(str, sys.version_info[:2]))
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores}, Python {python}, {libraries}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def save(results: Sequence[SetResult], path: Path = RESULTS) -> None:
    """Leaves the figures for README."""
    values = {"command": COMMAND, "machine": machine(), "sets": [one._asdict() for one in results]}
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def load(path: Path = RESULTS) -> tuple[dict[str, Any], list[SetResult]]:
    """What was saved: how it was measured, and the figures."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return values, [SetResult(**one) for one in values["sets"]]


def contenders(results: Sequence[SetResult]) -> list[str]:
    """All names, in their order."""
    return list(dict.fromkeys(name for one in results for name in one.costs))


def table(about: Mapping[str, Any], results: Sequence[SetResult]) -> str:
    """Markdown: a row a contender, a column a set."""
    lines = [
        "| µs of processor time a row | " + " | ".join(f"{one.name}, {one.tokens} tokens" for one in results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for name in contenders(results):
        shown = f"**{name}**" if name == OURS else name
        lines.append(f"| {shown} | " + " | ".join(_cell(one, name) for one in results) + " |")
    rows = ", ".join(f"{one.rows:,}" for one in results)
    source = f"`{about['command']}` on {rows} rows; {about['machine']}."
    return "\n".join(lines) + f"\n\n{source}\n"


def _cell(one: SetResult, name: str) -> str:
    if name not in one.costs:
        return ""
    first = next(iter(one.costs.values()))
    return f"{one.costs[name]:,.0f} ({one.costs[name] / first:.2f} ×)"


def picture(results: Sequence[SetResult]) -> str:
    """SVG: a bar for each figure of a set, each set to a scale of its own."""
    width, left, bar, gap = 760, 236, 18, 6
    parts, y = [], 8
    for one in results:
        parts.append(f'<text class="name" x="0" y="{y + 14}">{escape(one.name)}</text>')
        y += 24
        most = max(one.costs.values())
        for name, cost in one.costs.items():
            length = (width - left - 150) * cost / most
            kind = "ours" if name.startswith(OURS) else "theirs"
            parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="{bar}"/>')
            parts.append(f'<text x="{left + length + 8:.1f}" y="{y + 14}">{cost:,.0f} µs</text>')
            y += bar + gap
        y += 10
    style = (
        "text{font:13px system-ui,sans-serif;fill:#1f2328}.name{font-weight:600}"
        ".ours{fill:#1a7f64}.theirs{fill:#8c959f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#3fb68b}.theirs{fill:#6e7681}}"
    )
    title = "Processor time a row, from records to masked ids on disk, beside tokenizing alone"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" role="img" aria-label="{title}">'
        f"<title>{title}</title><style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def with_figures(readme: str, figures: str) -> str:
    """README with its figures in their place."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"README.md: expected {BEGIN!r} and {END!r}"
    return before + BEGIN + figures + END + after


def main() -> None:
    about, results = load()
    PICTURE.write_text(picture(results), encoding="utf-8")
    README.write_text(with_figures(README.read_text(encoding="utf-8"), table(about, results)), encoding="utf-8")


if __name__ == "__main__":
    main()
