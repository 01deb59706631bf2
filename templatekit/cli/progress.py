"""The progress bar of long runs, on a terminal: rows, rows a second and, where the row count is known, the time
left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from templatekit.config.data_options import DataOptions
from templatekit.pipeline.pipeline import Pipeline

T = TypeVar("T")


@contextmanager
def progress_bar(options: DataOptions) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error during a run; nothing where that is not a terminal.

    Yields a function that shows how many rows have been read.
    """
    if not (sys.stderr and sys.stderr.isatty()):  # None where the caller closed it
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    total = known_row_count(options)
    columns = [TextColumn("{task.completed:,} rows"), TextColumn("{task.fields[rate]}"), TimeElapsedColumn()]
    if total is not None:
        columns += [BarColumn(), TextColumn("of {task.total:,}"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, rate="")

        def show_rows(rows: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=rows, rate=f"{speed:,.0f} rows/s" if speed else "")

        yield show_rows


def report_progress(chunks: Iterable[T], pipeline: Pipeline, show_rows: Callable[[int], None]) -> Iterator[T]:
    """Pass on the chunks of a run, and show after each how many rows have been read."""
    for chunk in chunks:
        show_rows(pipeline.counts.rows_in)
        yield chunk


def known_row_count(options: DataOptions) -> int | None:
    """Return how many rows a run will read, where a limit or a Parquet file says so before they are read."""
    rows = None
    path = Path(options.dataset)
    if not options.mix and path.suffix.lower() == ".parquet" and path.is_file():
        import pyarrow as pa
        import pyarrow.parquet

        try:
            rows = int(pyarrow.parquet.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError):
            return None  # the reader reports what is wrong with the file
    if options.limit is None or rows is None:
        return rows if options.limit is None else options.limit
    return min(rows, options.limit)
