"""How long examples are, and how much of them is trained: as bars in a terminal, or as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from templatekit.errors import ConfigError, RunError
from templatekit.pipeline.outputs import Lengths

_BINS = 16
_WIDTH = 40
_STEPS = (1, 2, 5)


class Bin(NamedTuple):
    """How many examples have a value in `start <= value < end`."""

    start: int
    end: int
    examples: int


class Distributions(Lengths):
    """Lengths and numbers of trained tokens, to be looked at."""

    def parts(self) -> list[tuple[str, Counter[int]]]:
        """What there is to show, with a title each."""
        both = [(f"{self.unit} of an example", self.lengths), ("trained tokens of an example", self.trained)]
        return [(title, counts) for title, counts in both if counts]

    def lines(self) -> Iterator[str]:
        """Bars of text, the longest of 40 characters."""
        for title, counts in self.parts():
            total = counts.total()
            mean = sum(value * count for value, count in counts.items()) / total
            yield f"{title}: {min(counts):,} to {max(counts):,}, mean {mean:,.1f}"
            bins = bins_of(counts)
            names = [f"{one.start:,}–{one.end - 1:,}" if one.end - one.start > 1 else f"{one.start:,}" for one in bins]
            most = max(one.examples for one in bins)
            for name, one in zip(names, bins, strict=True):
                bar = "█" * max(round(_WIDTH * one.examples / most), one.examples > 0)
                yield f"  {name:>{max(map(len, names))}} {bar} {one.examples:,}".rstrip()

    def save(self, path: Path) -> None:
        """A picture of the bars."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        parts = self.parts()
        figure = Figure(figsize=(6, 3 * max(1, len(parts))), layout="constrained")
        FigureCanvasAgg(figure)
        for place, (title, counts) in enumerate(parts, 1):
            axes = figure.add_subplot(len(parts), 1, place)
            bins = bins_of(counts)
            axes.bar([b.start for b in bins], [b.examples for b in bins], [b.end - b.start for b in bins], align="edge")
            axes.set(xlabel=title, ylabel="examples")
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise RunError(f"--stats {str(path)!r} cannot be written: {error}") from None


def bins_of(counts: Counter[int]) -> list[Bin]:
    """At most 16 bins of one width, 1, 2 or 5 times a power of ten, that hold every value."""
    low, high = min(counts), max(counts)
    width = next(
        step * 10**power
        for power in range(len(str(high)) + 1)
        for step in _STEPS
        if high // (step * 10**power) - low // (step * 10**power) < _BINS
    )
    first, last = low // width, high // width
    by_bin: Counter[int] = Counter()
    for value, count in counts.items():
        by_bin[value // width] += count
    return [Bin(place * width, (place + 1) * width, by_bin[place]) for place in range(first, last + 1)]


def check_picture(path: Path) -> None:
    """Says at once, and not at the end, that a picture cannot be made."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--stats {str(path)!r}: expected a file that ends in .png, .svg or .pdf; or --stats alone")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"--stats {str(path)!r} cannot be written: no folder {str(path.parent)!r}")
    if find_spec("matplotlib") is None:
        raise ConfigError("--stats FILE needs the package matplotlib; found none; pip install 'templatekit[plots]'")
