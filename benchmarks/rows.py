"""Rows for benchmarks: the bundled ones, repeated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from templatekit.config.data_options import DataOptions
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import Record


def bundled_rows(count: int) -> list[Record]:
    """This many rows: the bundled ones, repeated."""
    pipeline = Pipeline(DataOptions(dataset="starter"), create_registry())
    rows = [record for record in pipeline.open() if not isinstance(record, Exception)]
    return list(itertools.islice(itertools.cycle(rows), count))


def write_numbered(file: Path, rows: Sequence[Record], count: int) -> None:
    """Write the rows, repeated, as JSON Lines, each with its number after its output, so that no two are equal."""
    with file.open("w", encoding="utf-8") as output:
        for number, row in zip(range(count), itertools.cycle(rows), strict=False):
            output.write(json.dumps({**row, "output": f"{row['output']} {number}"}) + "\n")
