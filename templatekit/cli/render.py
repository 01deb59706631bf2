"""`templatekit render`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import click

from templatekit.cache.preparation import prepare_batches, prepare_output
from templatekit.cli.histograms import LengthHistograms, check_plot_file
from templatekit.cli.options import OVERWRITE, PLUGIN_DIR, add_options, given_options, load_registry
from templatekit.cli.output import (
    CountedPacks,
    atomic_file,
    check_can_pack,
    choose_exporter,
    may_replace,
    print_summary,
    write_atomically,
    write_output,
)
from templatekit.cli.progress import progress_bar, report_progress
from templatekit.cli.terminal import safe_on_terminal, say
from templatekit.config.render_options import RenderOptions
from templatekit.engines.jobs import Engine
from templatekit.engines.processes import process_engine
from templatekit.errors import ConfigError
from templatekit.hooks.exporters import BaseExporter, FolderExporter
from templatekit.packing import pack_stream
from templatekit.pipeline.inputs import ReadPath, check_output_file, check_output_folder, read_paths
from templatekit.pipeline.mixture import create_pipeline
from templatekit.pipeline.outputs import ExporterConverter, takes_columns

_ON_STDERR = "-"
_TERMINAL_ROWS = 5
"""Number of rows to show on a terminal if no limit is given."""


@click.command()
@add_options(RenderOptions)
@click.option("--output", type=click.Path(path_type=Path), help="The file or folder to write; by default stdout.")
@OVERWRITE
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
    overwrite: bool,
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
    picture = None if stats in (None, _ON_STDERR) else Path(str(stats))
    if picture is not None:
        check_plot_file(picture)
    replace = _check_outputs(output, picture, exporter, read_paths(render_options, registry), overwrite=overwrite)
    pipeline = create_pipeline(render_options, registry)
    workers = _create_engine(engine, render_options.workers)
    histograms = LengthHistograms()
    observer = histograms if stats is not None else None
    packs: CountedPacks | None = None

    log = partial(say, err=True)
    if on_screen:
        from templatekit.cli.preview import show_examples

        batches = prepare_batches(pipeline, say=log)
        samples = chain.from_iterable(batches if observer is None else observer.observe(batches))
        show_examples((sample.result for sample in samples), pipeline.options.train_on)
    else:
        stdout = sys.stdout.buffer
        # The output of plugins' print calls must not get between the rows.
        with redirect_stdout(sys.stderr), progress_bar(pipeline.options) as show_rows:
            converter = ExporterConverter.of(exporter, registry)
            chunks = prepare_output(pipeline, converter, engine=workers, lengths=observer, say=log)
            chunks = report_progress(chunks, pipeline, show_rows)
            if render_options.pack_tokens is not None:
                pack_tokens = render_options.pack_tokens
                packs = CountedPacks(pack_stream((chunk.content for chunk in chunks), pack_tokens), pack_tokens)
            columns = takes_columns(exporter, pipeline)
            if output is None:
                with safe_on_terminal(stdout) as file:
                    write_output(exporter, packs or chunks, file, columns=columns)
                stdout.flush()
            else:
                write_atomically(exporter, packs or chunks, output, columns=columns, replace=replace.output)
    print_summary(pipeline, as_json=as_json, packs=packs)
    if stats == _ON_STDERR:
        for line in histograms.lines():
            log(line)
    elif picture is not None:
        with atomic_file(picture, option="--stats", replace=replace.stats) as file:
            file.write(histograms.picture(picture.suffix[1:].lower()))


class _Replace(NamedTuple):
    """Which files may be replaced."""

    output: bool
    stats: bool


def _check_outputs(
    output: Path | None, picture: Path | None, exporter: BaseExporter, read: Sequence[ReadPath], *, overwrite: bool
) -> _Replace:
    """Raise `ConfigError` where an output would be written over what is read, over a file, or over the other one."""
    replace_output = replace_stats = False
    if output is None:
        # `>> rows.jsonl`: the command would read what it writes, without an end.
        check_output_file(Path("/dev/stdout"), "standard output", read)
    elif isinstance(exporter, FolderExporter):
        check_output_folder(output, f"--output {str(output)!r}", read)
    else:
        replace_output = may_replace(output, read, overwrite=overwrite)
    if picture is not None:
        if output is not None and os.path.realpath(output) == os.path.realpath(picture):
            raise ConfigError(f"--stats {str(picture)!r} is the file of --output {str(output)!r} too; name two files")
        replace_stats = may_replace(picture, read, overwrite=overwrite, option="--stats")
    return _Replace(replace_output, replace_stats)


def _create_engine(name: str, workers: int | None) -> Engine | None:
    """Return the engine that runs the workers; None where this process does the work itself."""
    if name == "ray":
        from templatekit.engines.ray import ray_engine

        return ray_engine(workers)
    return process_engine(workers)
