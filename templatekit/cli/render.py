"""`templatekit render`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from templatekit.cli.options import PLUGIN_DIR, given, load_registry, option_set
from templatekit.cli.output import Converted, Examples, choose_exporter, summarize, write, write_whole
from templatekit.config import DataOptions
from templatekit.pipeline import Pipeline
from templatekit.workers import converted, converted_by_workers

ON_SCREEN = 5
"""Rows shown on a terminal where no limit is given."""


@click.command()
@option_set(DataOptions)
@click.option("--output", type=click.Path(path_type=Path), help="The file to write; without it, standard output.")
@click.option("--format", help="jsonl, parquet, arrow, or a plugin's; by default told by the output's ending.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    help="Processes that render and encode; the output is the same for any number.  [default: 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@PLUGIN_DIR
def render(
    output: Path | None,
    format: str | None,
    workers: int,
    as_json: bool,
    plugin_dirs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Render records to text, ids and labels.

    One object a row: row, text, input_ids, labels (-100 where not trained) and spans; without a tokenizer row, text
    and spans. On a terminal, coloured text instead.
    """
    registry = load_registry(plugin_dirs)
    values = given(options)
    on_screen = output is None and format is None and sys.stdout.isatty()
    if on_screen:
        values.setdefault("limit", ON_SCREEN)
    pipeline = Pipeline(DataOptions.parse(values), registry)
    exporter = choose_exporter(registry, format, output)
    records, source = pipeline.open(), pipeline.options.dataset
    results = (item.result for item in pipeline.run(records, source=source))
    if on_screen:
        from templatekit.cli.preview import show

        show(results, pipeline.options.train_on)
    else:
        examples: Examples | Converted = results
        if pipeline.encoder is not None and workers > 1:
            dirs = [folder.resolve() for folder in plugin_dirs]
            parts = converted_by_workers(pipeline, records, exporter, workers=workers, source=source, plugin_dirs=dirs)
            examples = Converted(parts)
        elif pipeline.encoder is not None:
            examples = Converted(converted(pipeline, records, exporter, source=source))
        stdout = sys.stdout.buffer
        with redirect_stdout(sys.stderr):  # what a plugin prints must not get between the rows
            if output is None:
                write(exporter, examples, stdout)
                stdout.flush()
            else:
                write_whole(exporter, examples, output)
    summarize(pipeline, as_json=as_json)
