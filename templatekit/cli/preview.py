"""`templatekit preview`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import click

from templatekit.cli.options import PLUGIN_DIR, given, load_registry, option_set
from templatekit.cli.output import summarize
from templatekit.config.options import CACHE, DataOptions
from templatekit.errors import ConfigError
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.supervision import view_of
from templatekit.types import RenderedText, TokenizedExample, TrainOn
from templatekit.views import legend, to_marked, to_rich


@click.command()
@option_set(DataOptions, only=[name for name in DataOptions.model_fields if name not in ("limit", *CACHE)])
@click.option("--row", type=click.IntRange(min=0), default=0, help="The first row to show, counted from 0.")
@click.option("--limit", type=click.IntRange(min=1), default=1, help="How many rows to show.  [default: 1]")
@PLUGIN_DIR
def preview(row: int, limit: int, plugin_dirs: tuple[Path, ...], **options: Any) -> None:
    """Show records as a template renders them: template text dim, data in colour, what is trained in green.

    Without colours (in a file, in a pipe) what is trained stands in ⟦ ⟧, behind its weight where that is not 1. Control
    characters stand as pictures (␛).
    """
    registry = load_registry(plugin_dirs)
    pipeline = Pipeline(DataOptions.parse({**given(options), "limit": row + limit}), registry)
    with redirect_stdout(sys.stderr):  # what a plugin prints is no part of the result
        records = pipeline.open()
        before = sum(1 for _ in islice(records, row))
        shown = [item.result for item in pipeline.run(records, source=pipeline.options.dataset, first_row=row)]
    if not pipeline.counts.rows_in:
        raise ConfigError(f"--row {row}: the data set ends before it; found {before} rows, 0 to {before - 1}")
    show(shown, pipeline.options.train_on)
    summarize(pipeline, as_json=False)


def show(examples: Iterable[RenderedText | TokenizedExample], train_on: TrainOn) -> None:
    """Prints examples in colour, or with marks where there is none."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    if coloured:
        console.print(legend())
    for example in examples:
        view = view_of(example, train_on)
        counted = f", {view.caption}" if view.caption else ""
        rendered = example.rendered if isinstance(example, TokenizedExample) else example
        numbered = f", sample {rendered.sample + 1} of {rendered.samples}" if rendered.samples > 1 else ""
        console.rule(f"row {example.row}{numbered}{counted}", align="left", style="dim")
        if coloured:
            console.print(to_rich(view))
        else:
            click.echo(to_marked(view))
