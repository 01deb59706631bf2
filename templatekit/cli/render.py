"""`templatekit render`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import click

from templatekit.cache import prepared_batches, prepared_parts
from templatekit.cli.lengths import Distributions, check_picture
from templatekit.cli.options import PLUGIN_DIR, given, load_registry, option_set
from templatekit.cli.output import Packed, check_packs, choose_exporter, summarize, write, write_whole
from templatekit.cli.progress import progress, watched
from templatekit.config.options import RenderOptions
from templatekit.engines.jobs import Engine
from templatekit.engines.processes import local_workers
from templatekit.packing import packed
from templatekit.pipeline.mixture import pipeline_of
from templatekit.pipeline.outputs import ForSink, in_columns

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
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Where they run: on this machine, or on a Ray cluster, by default one that is started here "
    "(RAY_ADDRESS names another).  [default: local]",
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
    workshop = _engine(engine, chosen.workers)
    lengths = Distributions()
    if stats is not None and stats != _ON_STDERR:
        check_picture(Path(stats))
    counted = lengths if stats is not None else None
    packs: Packed | None = None

    def say(line: str) -> None:
        click.echo(line, err=True)

    if on_screen:
        from templatekit.cli.preview import show

        batches = prepared_batches(pipeline, say=say)
        samples = chain.from_iterable(batches if counted is None else counted.watch(batches))
        show((item.result for item in samples), pipeline.options.train_on)
    else:
        stdout = sys.stdout.buffer
        # What a plugin prints must not get between the rows.
        with redirect_stdout(sys.stderr), progress(pipeline.options) as shown:
            make = ForSink.of(exporter, registry)
            parts = prepared_parts(pipeline, make, engine=workshop, lengths=counted, say=say)
            parts = watched(parts, pipeline, shown)
            if chosen.pack_tokens is not None:
                packs = Packed(packed((part.content for part in parts), chosen.pack_tokens), chosen.pack_tokens)
            columns = in_columns(exporter, pipeline)
            if output is None:
                write(exporter, packs or parts, stdout, columns=columns)
                stdout.flush()
            else:
                write_whole(exporter, packs or parts, output, columns=columns)
    summarize(pipeline, as_json=as_json, packed=packs)
    if stats == _ON_STDERR:
        for line in lengths.lines():
            click.echo(line, err=True)
    elif stats is not None:
        lengths.save(Path(stats))


def _engine(name: str, workers: int | None) -> Engine | None:
    """What does the work; None where this process does it itself."""
    if name == "ray":
        from templatekit.engines.ray import on_ray

        return on_ray(workers)
    return local_workers(workers)
