"""`templatekit render`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import click

from templatekit.cache import prepare_batches, prepare_output
from templatekit.cli.histograms import LengthHistograms, check_plot_file
from templatekit.cli.options import PLUGIN_DIR, add_options, given_options, load_registry
from templatekit.cli.output import (
    CountedPacks,
    check_can_pack,
    choose_exporter,
    print_summary,
    write_atomically,
    write_output,
)
from templatekit.cli.progress import progress_bar, report_progress
from templatekit.config.render_options import RenderOptions
from templatekit.engines.jobs import Engine
from templatekit.engines.processes import process_engine
from templatekit.packing import pack_stream
from templatekit.pipeline.mixture import create_pipeline
from templatekit.pipeline.outputs import ExporterConverter, takes_columns

_ON_STDERR = "-"
_TERMINAL_ROWS = 5
"""Number of rows to show on a terminal if no limit is given."""


@click.command()
@add_options(RenderOptions)
@click.option("--output", type=click.Path(path_type=Path), help="The file or folder to write; by default stdout.")
@click.option(
    "--format",
    help="jsonl, parquet, arrow, datasets, axolotl, openai, sharegpt, prompt-completion, llama-factory, or a plugin's; "
    "by default inferred from the suffix of the output.",
)
@click.option(
    "--stats",
    is_flag=False,
    flag_value=_ON_STDERR,
    metavar="[FILE.png]",
    help="Show histograms of the lengths of examples and of their trained tokens; with a file name, as a picture.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Where the workers run: on this machine, or on a Ray cluster: the one that RAY_ADDRESS names, or a new one on "
    "this machine.  [default: local]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@PLUGIN_DIR
def render(
    output: Path | None,
    format: str | None,
    stats: str | None,
    engine: str,
    as_json: bool,
    plugin_dirs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Render records to text, ids and labels.

    Writes one JSON object for each row: row, text, input_ids, labels (-100 where not trained) and spans; without a
    tokenizer only row, text and spans. With --pack-tokens, writes one object for each pack: input_ids, labels,
    position_ids, seq_lengths and rows. On a terminal, shows coloured text instead.
    """
    registry = load_registry(plugin_dirs)
    render_options = RenderOptions.parse(given_options(options))
    packing = render_options.pack_tokens is not None
    on_screen = output is None and format is None and not packing and sys.stdout.isatty()
    if on_screen and render_options.limit is None:
        render_options = render_options.model_copy(update={"limit": _TERMINAL_ROWS})
    exporter = choose_exporter(registry, format, output)
    if packing:
        check_can_pack(exporter, registry, render_options)
    pipeline = create_pipeline(render_options, registry)
    workers = _create_engine(engine, render_options.workers)
    histograms = LengthHistograms()
    if stats is not None and stats != _ON_STDERR:
        check_plot_file(Path(stats))
    observer = histograms if stats is not None else None
    packs: CountedPacks | None = None

    def say(line: str) -> None:
        click.echo(line, err=True)

    if on_screen:
        from templatekit.cli.preview import show_examples

        batches = prepare_batches(pipeline, say=say)
        samples = chain.from_iterable(batches if observer is None else observer.observe(batches))
        show_examples((sample.result for sample in samples), pipeline.options.train_on)
    else:
        stdout = sys.stdout.buffer
        # The output of plugins' print calls must not get between the rows.
        with redirect_stdout(sys.stderr), progress_bar(pipeline.options) as show_rows:
            converter = ExporterConverter.of(exporter, registry)
            chunks = prepare_output(pipeline, converter, engine=workers, lengths=observer, say=say)
            chunks = report_progress(chunks, pipeline, show_rows)
            if render_options.pack_tokens is not None:
                pack_tokens = render_options.pack_tokens
                packs = CountedPacks(pack_stream((chunk.content for chunk in chunks), pack_tokens), pack_tokens)
            columns = takes_columns(exporter, pipeline)
            if output is None:
                write_output(exporter, packs or chunks, stdout, columns=columns)
                stdout.flush()
            else:
                write_atomically(exporter, packs or chunks, output, columns=columns)
    print_summary(pipeline, as_json=as_json, packs=packs)
    if stats == _ON_STDERR:
        for line in histograms.lines():
            click.echo(line, err=True)
    elif stats is not None:
        histograms.save(Path(stats))


def _create_engine(name: str, workers: int | None) -> Engine | None:
    """Return the engine that runs the workers; None where this process does the work itself."""
    if name == "ray":
        from templatekit.engines.ray import ray_engine

        return ray_engine(workers)
    return process_engine(workers)
