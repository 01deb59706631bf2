"""What commands print beside their result: summaries on stderr, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click

from templatekit.contracts import Exporter
from templatekit.errors import ConfigError
from templatekit.pipeline import Counts, Pipeline
from templatekit.registry import Registry
from templatekit.types import RenderedText, TokenizedExample


def choose_exporter(registry: Registry, format: str | None, output: Path | None) -> Exporter:
    """By name, else by the file's ending, else JSON Lines."""
    if format is not None:
        return registry.exporters[format]
    if output is not None and output.suffix:
        for exporter in registry.exporters.values():
            if output.suffix in exporter.suffixes:
                return exporter
        known = ", ".join(suffix for exporter in registry.exporters.values() for suffix in exporter.suffixes)
        raise ConfigError(f"--output {str(output)!r}: no format has this ending; known: {known}; or name a --format")
    return registry.exporters["jsonl"]


def write_whole(exporter: Exporter, examples: Iterable[RenderedText | TokenizedExample], output: Path) -> int:
    """Writes beside the file and moves it there once it is complete; on any error nothing is left."""
    if output.is_dir():
        raise ConfigError(f"--output {str(output)!r} is a folder; expected a file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name[:60]}.")
        os.close(handle)
    except OSError as error:
        raise ConfigError(f"--output {str(output)!r} cannot be written: {error.strerror}") from None
    temporary = Path(name)
    try:
        with temporary.open("wb") as file:
            count = exporter.write(examples, file)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"--output {str(output)!r} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def summarize(pipeline: Pipeline, *, as_json: bool) -> None:
    """What became of the rows, on stderr."""
    counts = pipeline.counts
    if as_json:
        click.echo(
            json.dumps({"adapter": pipeline.adapter.name if pipeline.adapter else None, **counts.as_dict()}), err=True
        )
        return
    if pipeline.options.adapter is None and pipeline.adapter is not None:
        click.echo(f"adapter: {pipeline.adapter.name} (told by the records' keys)", err=True)
    for line in summary_lines(counts, tokens=pipeline.tokenizer is not None):
        click.echo(line, err=True)


def summary_lines(counts: Counts, *, tokens: bool) -> list[str]:
    """The counts in words."""
    line = f"rows in: {counts.rows_in:,}, rows out: {counts.rows_out:,}, dropped: {counts.dropped.total():,}"
    if tokens:
        line += f", tokens: {counts.tokens:,}, trained tokens: {counts.trained_tokens:,}"
    lines = [line]
    lines += [
        f"dropped {count:,} × {reason}; the first: {counts.first_dropped[reason]}"
        for reason, count in counts.dropped.most_common()
    ]
    if counts.empty_responses:
        lines.append(f"note: {counts.empty_responses:,} rows have an empty answer; only the end marker is trained")
    if counts.unread_keys:
        keys = ", ".join(f"{key} (first in row {row})" for key, row in sorted(counts.unread_keys.items()))
        lines.append(f"note: keys that the adapter does not read: {keys}")
    return lines


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
