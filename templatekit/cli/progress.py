"""How far a long run is: rows, rows a second and, where the number of rows is known, the time left; on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from templatekit.config.options import DataOptions
from templatekit.pipeline.pipeline import Pipeline

T = TypeVar("T")


class Shown(Protocol):
    """Shows how far a run is."""

    def __call__(self, rows: int) -> None:
        """So many rows are read."""


@contextmanager
def progress(options: DataOptions) -> Iterator[Shown]:
    """A bar on standard error while a run goes on; nothing where that is no terminal."""
    if not (sys.stderr and sys.stderr.isatty()):  # None where the caller closed it
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    total = known_rows(options)
    columns = [TextColumn("{task.completed:,} rows"), TextColumn("{task.fields[rate]}"), TimeElapsedColumn()]
    if total is not None:
        columns += [BarColumn(), TextColumn("of {task.total:,}"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, rate="")

        def shown(rows: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=rows, rate=f"{speed:,.0f} rows/s" if speed else "")

        yield shown


def watched(parts: Iterable[T], pipeline: Pipeline, shown: Shown) -> Iterator[T]:
    """The parts of a run, with the rows that were read for them shown."""
    for part in parts:
        shown(pipeline.counts.rows_in)
        yield part


def known_rows(options: DataOptions) -> int | None:
    """How many rows a run will read, where that can be known without reading them: a limit, or a Parquet file."""
    rows = None
    path = Path(options.dataset)
    if not options.mix and path.suffix.lower() == ".parquet" and path.is_file():
        import pyarrow as pa
        import pyarrow.parquet

        try:
            rows = int(pyarrow.parquet.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError):
            return None  # what is wrong with the file is said where it is read
    if options.limit is None or rows is None:
        return rows if options.limit is None else options.limit
    return min(rows, options.limit)
