"""`templatekit render`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import click

from templatekit.cache import prepared_batches
from templatekit.cli.lengths import Distributions, check_picture
from templatekit.cli.options import PLUGIN_DIR, given, load_registry, option_set
from templatekit.cli.output import (
    Converted,
    Packed,
    admitted,
    admitted_columns,
    check_packs,
    choose_exporter,
    summarize,
    write,
    write_whole,
)
from templatekit.cli.progress import progress, watched
from templatekit.config import RenderOptions
from templatekit.errors import ConfigError
from templatekit.mixture import Mixture, pipeline_of
from templatekit.packing import Sequences, packed
from templatekit.prepared import Prepared
from templatekit.sinks import Exporter
from templatekit.workers import Part, converted, converted_by_workers

_ON_STDERR = "-"
ON_SCREEN = 5
"""Rows shown on a terminal where no limit is given."""


@click.command()
@option_set(RenderOptions)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The file or folder to write; without it, standard output."
)
@click.option(
    "--format",
    help="jsonl, parquet, arrow, datasets, axolotl, openai, sharegpt, prompt-completion, llama-factory, or a plugin's; "
    "by default told by the output's ending.",
)
@click.option(
    "--stats",
    is_flag=False,
    flag_value=_ON_STDERR,
    metavar="[FILE.png]",
    help="Show how long examples are, and how much of them is trained; as a picture where a file is named.",
)
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
    stats: str | None,
    workers: int,
    as_json: bool,
    plugin_dirs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Render records to text, ids and labels.

    One object a row: row, text, input_ids, labels (-100 where not trained) and spans; without a tokenizer row, text
    and spans. On a terminal, coloured text instead. With --pack-tokens one object a pack: input_ids, labels,
    position_ids, seq_lengths and rows.
    """
    registry = load_registry(plugin_dirs)
    values = given(options)
    chosen = RenderOptions.parse(values)
    on_screen = output is None and format is None and chosen.pack_tokens is None and sys.stdout.isatty()
    if on_screen and chosen.limit is None:
        chosen = chosen.model_copy(update={"limit": ON_SCREEN})
    exporter = choose_exporter(registry, format, output)
    if chosen.pack_tokens is not None:
        check_packs(exporter, registry, chosen)
    pipeline = pipeline_of(chosen, registry)
    # Whole columns go to a file of rows; what looks at single samples goes without them.
    one_set = not isinstance(pipeline, Mixture)
    in_columns = one_set and isinstance(exporter, Exporter) and pipeline.encoder is not None
    if workers > 1 and (stats is not None or not in_columns) and pipeline.encoder is not None:
        raise ConfigError(
            f"--workers {workers} renders one set to jsonl, parquet or arrow; found --mix, --stats or another "
            "--format; leave --workers out"
        )
    if workers > 1 and pipeline.options.cache:
        raise ConfigError(f"--cache keeps what one process makes; found --workers {workers}; expected one of the two")
    lengths = Distributions()
    if stats is not None and stats != _ON_STDERR:
        check_picture(Path(stats))
    batches = prepared_batches(pipeline, say=lambda line: click.echo(line, err=True))
    batches = lengths.counted(batches) if stats is not None else batches
    samples: Iterable[Prepared] = chain.from_iterable(batches)
    packs: Packed | None = None
    if on_screen:
        from templatekit.cli.preview import show

        show((item.result for item in samples), pipeline.options.train_on)
    else:
        stdout = sys.stdout.buffer
        # What a plugin prints must not get between the rows.
        with redirect_stdout(sys.stderr), progress(pipeline.options) as shown:
            items: Iterable[Any] | Converted | Packed
            parts: Iterable[Part] | None = None
            if in_columns and workers > 1:
                assert isinstance(exporter, Exporter)
                records, source = pipeline.open(), pipeline.options.dataset
                dirs = [folder.resolve() for folder in plugin_dirs]
                parts = converted_by_workers(
                    pipeline, records, exporter, workers=workers, source=source, plugin_dirs=dirs
                )
            if chosen.pack_tokens is not None:
                some = (
                    (part.content for part in parts)
                    if parts is not None
                    else map(Sequences.of, admitted_columns(exporter, batches, pipeline))
                )
                packs = Packed(packed(watched(some, pipeline, shown, every=1), chosen.pack_tokens), chosen.pack_tokens)
                items = packs
            elif in_columns:
                assert isinstance(exporter, Exporter)
                parts = converted(batches, exporter) if parts is None else parts
                items = Converted(watched(parts, pipeline, shown, every=1))
            else:
                items = admitted(exporter, watched(samples, pipeline, shown), pipeline)
            if output is None:
                write(exporter, items, stdout)
                stdout.flush()
            else:
                write_whole(exporter, items, output)
    summarize(pipeline, as_json=as_json, packed=packs)
    if stats == _ON_STDERR:
        for line in lengths.lines():
            click.echo(line, err=True)
    elif stats is not None:
        lengths.save(Path(stats))
