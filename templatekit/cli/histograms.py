"""Histograms of the lengths of examples and of their trained tokens, as text or as a picture (`render --stats`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from templatekit.errors import ConfigError
from templatekit.pipeline.outputs import LengthCounts

_MAX_BINS = 16
_BAR_WIDTH = 40
_BIN_WIDTHS = (1, 2, 5)
"""Widths of bins, each times a power of ten."""


class Bin(NamedTuple):
    """The count of examples with a value in `start <= value < end`."""

    start: int
    end: int
    examples: int


class LengthHistograms(LengthCounts):
    """Counts of lengths and of trained tokens, shown as histograms."""

    def titled_counts(self) -> list[tuple[str, Counter[int]]]:
        """The counts to show, each with a title."""
        both = [(f"{self.unit} of an example", self.lengths), ("trained tokens of an example", self.trained)]
        return [(title, counts) for title, counts in both if counts]

    def lines(self) -> Iterator[str]:
        """Yield the histograms as text. The longest bar has 40 characters."""
        for title, counts in self.titled_counts():
            total = counts.total()
            mean = sum(value * count for value, count in counts.items()) / total
            yield f"{title}: {min(counts):,} to {max(counts):,}, mean {mean:,.1f}"
            bins = histogram_bins(counts)
            labels = [f"{b.start:,}–{b.end - 1:,}" if b.end - b.start > 1 else f"{b.start:,}" for b in bins]
            highest = max(b.examples for b in bins)
            for label, b in zip(labels, bins, strict=True):
                bar = "█" * max(round(_BAR_WIDTH * b.examples / highest), b.examples > 0)
                yield f"  {label:>{max(map(len, labels))}} {bar} {b.examples:,}".rstrip()

    def picture(self, format: str) -> bytes:
        """The histograms as a picture, in a format of matplotlib's: `png`, `svg`, `pdf`."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        plots = self.titled_counts()
        figure = Figure(figsize=(6, 3 * max(1, len(plots))), layout="constrained")
        FigureCanvasAgg(figure)
        for index, (title, counts) in enumerate(plots, 1):
            axes = figure.add_subplot(len(plots), 1, index)
            bins = histogram_bins(counts)
            axes.bar([b.start for b in bins], [b.examples for b in bins], [b.end - b.start for b in bins], align="edge")
            axes.set(xlabel=title, ylabel="examples")
        file = BytesIO()
        figure.savefig(file, format=format)
        return file.getvalue()


def histogram_bins(counts: Counter[int]) -> list[Bin]:
    """Return at most 16 bins that hold every value, all of one width: 1, 2 or 5 times a power of ten."""
    low, high = min(counts), max(counts)
    width = next(
        factor * 10**power
        for power in range(len(str(high)) + 1)
        for factor in _BIN_WIDTHS
        if high // (factor * 10**power) - low // (factor * 10**power) < _MAX_BINS
    )
    first, last = low // width, high // width
    by_bin: Counter[int] = Counter()
    for value, count in counts.items():
        by_bin[value // width] += count
    return [Bin(index * width, (index + 1) * width, by_bin[index]) for index in range(first, last + 1)]


def check_plot_file(path: Path) -> None:
    """Raise `ConfigError` where a picture cannot be written, before the run rather than at its end."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--stats {str(path)!r}: expected a file that ends in .png, .svg or .pdf; or --stats alone")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"--stats {str(path)!r} cannot be written: no folder {str(path.parent)!r}")
    if find_spec("matplotlib") is None:
        raise ConfigError("--stats FILE needs the package matplotlib; found none; pip install 'templatekit[plots]'")
