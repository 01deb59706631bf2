"""The figures in README: saved to a file, shown as tables, drawn as a picture.

usage: python -m benchmarks.results

Writes README's tables and docs/render.svg from benchmarks/results.json, which `python -m benchmarks.render --trl
--save` and `python -m benchmarks.train ... --save` write. The picture is SVG of a few rectangles without a plotting
library: it is small, the same for every version of every library, and follows a page's dark colours.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README, PICTURE = ROOT / "benchmarks" / "results.json", ROOT / "README.md", ROOT / "docs" / "render.svg"
END = "<!-- end of figures -->\n"
OURS = "templatekit"


class SetResult(NamedTuple):
    """The results of rendering a data set."""

    name: str
    rows: int
    tokens: int
    """Mean tokens of a text."""
    costs: Mapping[str, float]
    """µs of processor time a row, over all cores, by contender. The others are compared with the first."""


class TrainResult(NamedTuple):
    """The results of training on a data set."""

    name: str
    rows: int
    tokens: int
    """Mean tokens of an example."""
    speeds: Mapping[str, float]
    """Tokens of examples a second, optimizer steps included, by contender."""
    memory: Mapping[str, float]
    """GiB above weights, gradients and optimizer, by contender."""
    losses: Mapping[str, float]
    """The loss of the first step, by contender. Equal losses show that the work is the same."""


class Section(NamedTuple):
    """A table in README."""

    name: str
    kind: type[SetResult] | type[TrainResult]
    table: Callable[[Mapping[str, Any], Sequence[Any]], str]
    libraries: tuple[str, ...]

    @property
    def begin(self) -> str:
        """The line of README before the table."""
        return f"<!-- figures of benchmarks.{self.name}: python -m benchmarks.results writes them -->\n"

    def save(self, results: Sequence[SetResult | TrainResult], command: str, path: Path = RESULTS) -> None:
        """Save the figures for README, and keep those of other sections."""
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        sets = [result._asdict() for result in results]
        values[self.name] = {"command": command, "machine": machine(self.libraries), "sets": sets}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def load(self, path: Path = RESULTS) -> tuple[dict[str, Any], list[Any]]:
        """Return the saved figures, with how they were measured."""
        values = json.loads(path.read_text(encoding="utf-8"))[self.name]
        return values, [self.kind(**result) for result in values["sets"]]

    def within(self, readme: str, figures: str) -> str:
        """Return README with these figures in their place."""
        before, found, rest = readme.partition(self.begin)
        _, ended, after = rest.partition(END)
        assert found and ended, f"README.md: expected {self.begin!r} and {END!r}"
        return before + self.begin + figures + END + after


def machine(libraries: Sequence[str]) -> str:
    """Describe the machine and the versions in words."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    installed = [name for name in libraries if find_spec(name) is not None]
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in installed)
    count = os.cpu_count() or 1
    cores = f"{count} cores" + (" busy with other work" if os.getloadavg()[0] > count + 1 else "")
    python = ".".join(map(str, sys.version_info[:2]))
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores}, Python {python}, {versions}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def cost_table(about: Mapping[str, Any], results: Sequence[SetResult]) -> str:
    """A Markdown table: a row for each contender, a column for each data set, and each cost's ratio to the first."""
    cells = [
        {name: f"{cost:,.0f} ({cost / next(iter(result.costs.values())):.2f} ×)" for name, cost in result.costs.items()}
        for result in results
    ]
    return _table("µs of processor time a row", about, results, cells)


def speed_table(about: Mapping[str, Any], results: Sequence[TrainResult]) -> str:
    """A Markdown table of speeds, with the ratio to the fastest other library and the memory; rows are contenders."""
    cells = []
    for result in results:
        best = max((speed for name, speed in result.speeds.items() if not name.startswith(OURS)), default=None)
        cells.append(
            {
                name: f"{speed:,.0f}{f' ({speed / best:.2f} ×)' if best else ''}, {result.memory[name]:.2f} GiB"
                for name, speed in result.speeds.items()
            }
        )
    return _table("tokens a second, memory", about, results, cells)


def _table(
    what: str,
    about: Mapping[str, Any],
    results: Sequence[SetResult] | Sequence[TrainResult],
    cells: Sequence[Mapping[str, str]],
) -> str:
    lines = [
        f"| {what} | " + " | ".join(f"{result.name}, {result.tokens} tokens" for result in results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for name in dict.fromkeys(name for column in cells for name in column):
        shown = f"**{name}**" if name == OURS else name
        lines.append(f"| {shown} | " + " | ".join(column.get(name, "") for column in cells) + " |")
    rows = ", ".join(f"{result.rows:,}" for result in results)
    source = f"`{about['command']}` on {rows} rows; {about['machine']}."
    return "\n".join(lines) + f"\n\n{source}\n"


RENDER = Section("render", SetResult, cost_table, ("tokenizers", "transformers", "trl"))
TRAIN = Section("train", TrainResult, speed_table, ("torch", "transformers", "trl", "litgpt"))
SECTIONS = (RENDER, TRAIN)


def picture(results: Sequence[SetResult]) -> str:
    """An SVG with a bar for each figure. Each data set has its own scale."""
    width, left, bar, gap = 760, 236, 18, 6
    parts, y = [], 8
    for result in results:
        parts.append(f'<text class="name" x="0" y="{y + 14}">{escape(result.name)}</text>')
        y += 24
        most = max(result.costs.values())
        for name, cost in result.costs.items():
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


def readme_of(readme: str) -> str:
    """README with all figures that were saved."""
    for section in SECTIONS:
        readme = section.within(readme, section.table(*section.load()))
    return readme


def main() -> None:
    _, results = RENDER.load()
    PICTURE.write_text(picture(results), encoding="utf-8")
    README.write_text(readme_of(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
