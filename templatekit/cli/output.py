"""What commands print beside their result: summaries on stderr, and files that are whole or absent."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from templatekit.errors import ConfigError, PluginError, RunError, TemplatekitError
from templatekit.parts import Part
from templatekit.pipeline import Pipeline
from templatekit.registry import Registry
from templatekit.sinks import Exporter, FolderExporter, RecordExporter, Sink


def choose_exporter(registry: Registry, format: str | None, output: Path | None) -> Sink:
    """By name, else by the file's ending, else JSON Lines."""
    if format is not None:
        return registry.exporters[format]
    if output is not None and output.suffix:
        for exporter in registry.exporters.values():
            if output.suffix.lower() in exporter.suffixes:
                return exporter
        known = ", ".join(suffix for exporter in registry.exporters.values() for suffix in exporter.suffixes)
        raise ConfigError(f"--output {str(output)!r}: no format has this ending; known: {known}; or name a --format")
    return registry.exporters["jsonl"]


def write(exporter: Sink, parts: Iterable[Part], target: BinaryIO | Path, *, columns: bool = False) -> None:
    """Has an exporter write the parts, and sees that it leaves nothing out; `columns` says that it converted them."""
    given = 0
    ended = False

    def counted() -> Iterator[Any]:
        """What was converted part by part, else item by item."""
        nonlocal given, ended
        for part in parts:
            for samples, item in [part] if columns else ((1, one) for one in part.content):
                given += samples
                yield item
        ended = True

    try:
        if isinstance(exporter, FolderExporter):
            if not isinstance(target, Path):
                raise ConfigError(f"format {exporter.name!r} writes a folder; found none; expected --output FOLDER")
            written = exporter.write_folder(counted(), target)
        elif columns:
            assert isinstance(exporter, Exporter)
            written = exporter.write_converted(counted(), cast("BinaryIO", target))
        else:
            assert isinstance(exporter, (Exporter, RecordExporter))
            written = exporter.write(counted(), cast("BinaryIO", target))
    except (TemplatekitError, OSError):
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise PluginError(f"format {exporter.name!r} raised {type(error).__name__}: {error}") from error
    if written != given or not ended:
        more = "" if ended else " and more to come"
        raise PluginError(f"format {exporter.name!r} wrote {written!r} examples; expected all: {given}{more}")


def write_whole(exporter: Sink, parts: Iterable[Part], output: Path, *, columns: bool = False) -> None:
    """Has an exporter write a file, or a folder, that is whole or absent."""
    if isinstance(exporter, FolderExporter):
        with whole_folder(output) as folder:
            write(exporter, parts, folder)
        return
    with whole_file(output) as file:
        write(exporter, parts, file, columns=columns)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that is moved there once it is complete; on any error nothing is left."""
    where = f"--output {str(output)!r}"
    try:
        target = output.resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{where} is there already; expected a new folder, or an empty one")
        staging = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}")
        staging.mkdir(parents=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ConfigError(f"{where} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    try:
        yield staging
        staging.replace(target)
    except OSError as error:
        raise RunError(f"{where} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def whole_file(output: Path) -> Iterator[BinaryIO]:
    """A file beside `output` that is moved there once it is complete; on any error nothing is left.

    A device or a pipe is written as it is.
    """
    where = f"--output {str(output)!r}"
    try:
        if output.is_dir():
            raise ConfigError(f"{where} is a folder; expected a file")
        special = output.exists() and not output.is_file()
        target = output if special else output.resolve()  # of a link, the file behind it
        path = target if special else target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb" if special else "xb")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        said = "Not a directory" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or error
        raise ConfigError(f"{where} cannot be written: {said}") from None
    try:
        with file:
            yield file
        if not special:
            path.replace(target)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"{where} cannot be written: {error.strerror or error}") from error
    finally:
        if not special:
            path.unlink(missing_ok=True)


def summarize(pipeline: Pipeline, *, as_json: bool) -> None:
    """What became of the rows, on stderr."""
    counts = pipeline.counts
    if as_json:
        adapter = pipeline.adapter.name if pipeline.adapter else None
        click.echo(json.dumps({"adapter": adapter, **counts.as_dict()}, ensure_ascii=False), err=True)
        return
    if pipeline.options.adapter is None and pipeline.adapter is not None:
        click.echo(f"adapter: {pipeline.adapter.name} (told by the records' keys)", err=True)
    for line in counts.lines(tokens=pipeline.tokenizer is not None):
        click.echo(line, err=True)
