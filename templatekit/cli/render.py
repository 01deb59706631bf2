"""`templatekit render`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from templatekit.cli.options import PLUGIN_DIR, given, load_registry, option_set
from templatekit.cli.output import admitted, choose_exporter, summarize, write, write_whole
from templatekit.config import DataOptions
from templatekit.mixture import pipeline_of

ON_SCREEN = 5
"""Rows shown on a terminal where no limit is given."""


@click.command()
@option_set(DataOptions)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The file or folder to write; without it, standard output."
)
@click.option(
    "--format",
    help="jsonl, parquet, arrow, datasets, axolotl, openai, sharegpt, prompt-completion, llama-factory, or a plugin's; "
    "by default told by the output's ending.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@PLUGIN_DIR
def render(
    output: Path | None, format: str | None, as_json: bool, plugin_dirs: tuple[Path, ...], **options: Any
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
    pipeline = pipeline_of(DataOptions.parse(values), registry)
    exporter = choose_exporter(registry, format, output)
    samples = pipeline.prepared()
    if on_screen:
        from templatekit.cli.preview import show

        show((item.result for item in samples), pipeline.options.train_on)
    else:
        stdout = sys.stdout.buffer
        items = admitted(exporter, samples, pipeline)
        with redirect_stdout(sys.stderr):  # what a plugin prints must not get between the rows
            if output is None:
                write(exporter, items, stdout)
                stdout.flush()
            else:
                write_whole(exporter, items, output)
    summarize(pipeline, as_json=as_json)
