"""`templatekit preview`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import click

from templatekit.cli.options import PLUGIN_DIR, add_options, given_options, load_registry
from templatekit.cli.output import print_summary
from templatekit.cli.terminal import say
from templatekit.config.data_options import CACHE_OPTIONS, DataOptions
from templatekit.errors import ConfigError
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.supervision import loss_spans
from templatekit.types import RenderedText, TokenizedExample, TrainOn
from templatekit.views import View, legend, to_marked, to_rich


@click.command()
@add_options(DataOptions, only=[name for name in DataOptions.model_fields if name not in ("limit", *CACHE_OPTIONS)])
@click.option("--row", type=click.IntRange(min=0), default=0, help="The first row to show, counted from 0.")
@click.option("--limit", type=click.IntRange(min=1), default=1, help="How many rows to show.  [default: 1]")
@PLUGIN_DIR
def preview(row: int, limit: int, plugin_dirs: tuple[Path, ...], **options: Any) -> None:
    """Show records as a template renders them: template text dim, data in colour, trained text in green.

    Without colours (in a file or a pipe) trained text is in ⟦ ⟧, after its weight if that is not 1. Control characters
    are shown as symbols (␛), and characters that turn the direction of text as escapes.
    """
    registry = load_registry(plugin_dirs)
    pipeline = Pipeline(DataOptions.parse({**given_options(options), "limit": row + limit}), registry)
    with redirect_stdout(sys.stderr):  # the output of plugins' print calls is not part of the result
        records = pipeline.open()
        skipped = sum(1 for _ in islice(records, row))
        samples = pipeline.run(records, source=pipeline.options.dataset, first_row=row)
        examples = [sample.result for sample in samples]
    if not pipeline.counts.rows_in:
        raise ConfigError(f"--row {row}: the data set ends before it; found {skipped} rows, 0 to {skipped - 1}")
    show_examples(examples, pipeline.options.train_on)
    print_summary(pipeline, as_json=False)


def show_examples(examples: Iterable[RenderedText | TokenizedExample], train_on: TrainOn) -> None:
    """Print examples in colour, or with marks where colours are not supported."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    if coloured:
        console.print(legend())
    for example in examples:
        view = view_of(example, train_on)
        caption = f", {view.caption}" if view.caption else ""
        rendered = example.rendered if isinstance(example, TokenizedExample) else example
        sample = f", sample {rendered.sample + 1} of {rendered.samples}" if rendered.samples > 1 else ""
        console.rule(f"row {example.row}{sample}{caption}", align="left", style="dim")
        if coloured:
            console.print(to_rich(view))
        else:
            say(to_marked(view))


def view_of(shown: RenderedText | TokenizedExample, train_on: TrainOn) -> View:
    """A text for display. If it is not tokenized, its loss weights are those that `train_on` gives."""
    return shown.view() if isinstance(shown, TokenizedExample) else shown.view(loss_spans(shown, train_on))
