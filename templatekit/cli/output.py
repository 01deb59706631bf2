"""What commands print beside their result: summaries on stderr, and files that are whole or absent."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from templatekit.config.options import DataOptions
from templatekit.errors import ConfigError, PluginError, RunError, TemplatekitError
from templatekit.hooks.exporters import Exporter, FolderExporter, RecordExporter, Sink
from templatekit.hooks.registry import Registry
from templatekit.packing import Packs
from templatekit.pipeline.outputs import Part
from templatekit.pipeline.pipeline import Pipeline


@dataclass
class Packed:
    """Examples in packs, which are counted as they pass."""

    packs: Iterable[Packs]
    pack_tokens: int
    count: int = 0
    tokens: int = 0

    def __iter__(self) -> Iterator[Packs]:
        for some in self.packs:
            self.count += len(some)
            self.tokens += int(some.offsets[-1])
            yield some

    @property
    def fill(self) -> float:
        """How much of the packs is tokens; 1 where there are none."""
        return self.tokens / (self.count * self.pack_tokens) if self.count else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"packs": self.count, "pack_tokens": self.pack_tokens, "fill": round(self.fill, 4)}

    def line(self) -> str:
        """The same in words."""
        return f"packs: {self.count:,} of at most {self.pack_tokens:,} tokens, {self.fill:.1%} full"


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


def check_packs(exporter: Sink, registry: Registry, options: DataOptions) -> None:
    """Raises `ConfigError` where packs have no place in a format, or there is nothing to make them of."""
    if not exporter.takes_packs:
        known = ", ".join(name for name, one in registry.exporters.items() if one.takes_packs)
        raise ConfigError(f"--pack-tokens: format {exporter.name!r} has no place for packs; expected one of: {known}")
    if options.tokenizer is None:
        raise ConfigError("--pack-tokens packs token ids; found no tokenizer; expected --tokenizer too")


def write(exporter: Sink, items: Iterable[Part] | Packed, target: BinaryIO | Path, *, columns: bool = False) -> None:
    """Has an exporter write parts, or packs, and sees that it leaves nothing out; `columns`: it converted the parts."""
    given = 0
    ended = False

    def counted() -> Iterator[Any]:
        """Packs window by window, what was converted part by part, else item by item."""
        nonlocal given, ended
        if isinstance(items, Packed):
            for some in items:
                given += len(some)
                yield some
        else:
            for part in items:
                for samples, item in [part] if columns else ((1, one) for one in part.content):
                    given += samples
                    yield item
        ended = True

    try:
        if isinstance(exporter, FolderExporter):
            if not isinstance(target, Path):
                raise ConfigError(f"format {exporter.name!r} writes a folder; found none; expected --output FOLDER")
            write_folder = exporter.write_packs if isinstance(items, Packed) else exporter.write_folder
            written = write_folder(counted(), target)
        elif columns or isinstance(items, Packed):
            assert isinstance(exporter, Exporter)
            write_file = exporter.write_packs if isinstance(items, Packed) else exporter.write_converted
            written = write_file(counted(), cast("BinaryIO", target))
        else:
            assert isinstance(exporter, (Exporter, RecordExporter))
            written = exporter.write(counted(), cast("BinaryIO", target))
    except (TemplatekitError, OSError):
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise PluginError(f"format {exporter.name!r} raised {type(error).__name__}: {error}") from error
    if written != given or not ended:
        more = "" if ended else " and more to come"
        what = "packs" if isinstance(items, Packed) else "examples"
        raise PluginError(f"format {exporter.name!r} wrote {written!r} {what}; expected all: {given}{more}")


def write_whole(exporter: Sink, items: Iterable[Part] | Packed, output: Path, *, columns: bool = False) -> None:
    """Has an exporter write a file, or a folder, that is whole or absent."""
    if isinstance(exporter, FolderExporter):
        with whole_folder(output) as folder:
            write(exporter, items, folder)
        return
    with whole_file(output) as file:
        write(exporter, items, file, columns=columns)


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


def summarize(pipeline: Pipeline, *, as_json: bool, packed: Packed | None = None) -> None:
    """What became of the rows, on stderr, and how full packs are."""
    counts = pipeline.counts
    if as_json:
        adapter = pipeline.adapter.name if pipeline.adapter else None
        values = {"adapter": adapter, **counts.as_dict(), **(packed.as_dict() if packed else {})}
        click.echo(json.dumps(values, ensure_ascii=False), err=True)
        return
    if pipeline.options.adapter is None and pipeline.adapter is not None:
        click.echo(f"adapter: {pipeline.adapter.name} (told by the records' keys)", err=True)
    for line in counts.lines(tokens=pipeline.tokenizer is not None):
        click.echo(line, err=True)
    if packed is not None:
        click.echo(packed.line(), err=True)
