"""Write results: the choice of an exporter, files that appear only when they are complete, and the summary of a run."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import click

from templatekit.cli.terminal import print_json, safe_on_terminal, say
from templatekit.config.data_options import DataOptions
from templatekit.config.staging import staging_file, staging_folder
from templatekit.config.text_files import is_file
from templatekit.errors import ConfigError, PluginError, RunError, TemplatekitError
from templatekit.hooks.exporters import BaseExporter, Exporter, FolderExporter, RecordExporter
from templatekit.hooks.registry import Registry
from templatekit.packing import Packs
from templatekit.pipeline.inputs import ReadPath, check_output_file
from templatekit.pipeline.outputs import OutputChunk
from templatekit.pipeline.pipeline import Pipeline

_DESCRIPTOR = re.compile(r"/dev/(stdin|stdout|stderr|fd/([0-9]{1,9}))|/proc/self/fd/([0-9]{1,9})")
_STREAMS = ("stdin", "stdout", "stderr")


@dataclass
class CountedPacks:
    """An iterable of packs that counts the packs and tokens that pass."""

    packs: Iterable[Packs]
    pack_tokens: int
    count: int = 0
    tokens: int = 0

    def __iter__(self) -> Iterator[Packs]:
        for packs in self.packs:
            self.count += len(packs)
            self.tokens += int(packs.offsets[-1])
            yield packs

    @property
    def fill(self) -> float:
        """The share of the packs' capacity that tokens use; 1 where there are no packs."""
        return self.tokens / (self.count * self.pack_tokens) if self.count else 1.0

    def as_dict(self) -> dict[str, Any]:
        """The counts for JSON."""
        return {"packs": self.count, "pack_tokens": self.pack_tokens, "fill": round(self.fill, 4)}

    def line(self) -> str:
        """The counts in words."""
        return f"packs: {self.count:,} of at most {self.pack_tokens:,} tokens, {self.fill:.1%} full"


def choose_exporter(registry: Registry, format: str | None, output: Path | None) -> BaseExporter:
    """Return the exporter of this name, else the one for the file's suffix, else that for JSON Lines."""
    if format is not None:
        return registry.exporters[format]
    if output is not None and output.suffix:
        for exporter in registry.exporters.values():
            if output.suffix.lower() in exporter.suffixes:
                return exporter
        known = ", ".join(suffix for exporter in registry.exporters.values() for suffix in exporter.suffixes)
        raise ConfigError(f"--output {str(output)!r}: no format has this ending; known: {known}; or name a --format")
    return registry.exporters["jsonl"]


def check_can_pack(exporter: BaseExporter, registry: Registry, options: DataOptions) -> None:
    """Raise `ConfigError` where the format cannot hold packs, or there is no tokenizer."""
    if not exporter.takes_packs:
        known = ", ".join(name for name, other in registry.exporters.items() if other.takes_packs)
        raise ConfigError(f"--pack-tokens: format {exporter.name!r} has no place for packs; expected one of: {known}")
    if options.tokenizer is None:
        raise ConfigError("--pack-tokens packs token ids; found no tokenizer; expected --tokenizer too")


def write_output(
    exporter: BaseExporter,
    contents: Iterable[OutputChunk] | CountedPacks,
    target: BinaryIO | Path,
    *,
    columns: bool = False,
) -> None:
    """Have an exporter write output chunks or packs to a file or folder, and check that it wrote all of them.

    `columns` means that the chunks hold columns, which the exporter has converted.
    """
    given = 0
    exhausted = False

    def counted() -> Iterator[Any]:
        """Yield groups of packs, converted chunks, or single samples."""
        nonlocal given, exhausted
        if isinstance(contents, CountedPacks):
            for packs in contents:
                given += len(packs)
                yield packs
        else:
            for chunk in contents:
                for samples, content in [chunk] if columns else ((1, sample) for sample in chunk.content):
                    given += samples
                    yield content
        exhausted = True

    try:
        if isinstance(exporter, FolderExporter):
            if not isinstance(target, Path):
                raise ConfigError(f"format {exporter.name!r} writes a folder; found none; expected --output FOLDER")
            write_folder = exporter.write_packs if isinstance(contents, CountedPacks) else exporter.write_folder
            written = write_folder(counted(), target)
        elif columns or isinstance(contents, CountedPacks):
            assert isinstance(exporter, Exporter)
            write_file = exporter.write_packs if isinstance(contents, CountedPacks) else exporter.write_converted
            written = write_file(counted(), cast("BinaryIO", target))
        else:
            assert isinstance(exporter, (Exporter, RecordExporter))
            written = exporter.write(counted(), cast("BinaryIO", target))
    except (TemplatekitError, OSError):
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise PluginError(f"format {exporter.name!r} raised {type(error).__name__}: {error}") from error
    if written != given or not exhausted:
        more = "" if exhausted else " and more to come"
        kind = "packs" if isinstance(contents, CountedPacks) else "examples"
        raise PluginError(f"format {exporter.name!r} wrote {written!r} {kind}; expected all: {given}{more}")


def may_replace(output: Path, paths: Sequence[ReadPath], *, overwrite: bool, option: str = "--output") -> bool:
    """Whether a file to write may replace one: with `--overwrite`, or if somebody at a terminal agrees.

    Raises `ConfigError` where the file exists and may not be replaced, and for a file that is read, whoever agrees. A
    command calls this before it opens anything.
    """
    name = f"{option} {str(output)!r}"
    check_output_file(output, name, paths)
    if overwrite or not is_file(output) or _descriptor(output) is not None:
        return overwrite
    terminals = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if terminals and click.confirm(f"{name} exists; replace it?", err=True):
        return True
    raise _existing(name)


def _existing(name: str) -> ConfigError:
    return ConfigError(f"{name} exists; replace it with --overwrite, or name another file")


def _descriptor(output: Path) -> int | None:
    """The number of an open file that the path means, such as 1 for `/dev/stdout`."""
    match = _DESCRIPTOR.fullmatch(str(output))
    if match is None:
        return None
    return _STREAMS.index(match[1]) if match[1] in _STREAMS else int(match[2] or match[3])


def write_atomically(
    exporter: BaseExporter,
    contents: Iterable[OutputChunk] | CountedPacks,
    output: Path,
    *,
    columns: bool = False,
    replace: bool = False,
) -> None:
    """Have an exporter write a file or a folder, which appears only when it is complete.

    With `replace`, a file that exists is replaced; a folder never is.
    """
    if isinstance(exporter, FolderExporter):
        with atomic_folder(output) as folder:
            write_output(exporter, contents, folder)
        return
    with atomic_file(output, replace=replace) as file:
        write_output(exporter, contents, file, columns=columns)


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Create a temporary folder next to `output`, and rename it to `output` once complete; remove it on any error."""
    name = f"--output {str(output)!r}"
    with ExitStack() as temporary:
        try:
            target = output.resolve()
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise ConfigError(f"{name} is there already; expected a new folder, or an empty one")
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = temporary.enter_context(staging_folder(target))
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise ConfigError(f"{name} cannot be written: {getattr(error, 'strerror', None) or error}") from None
        try:
            yield staging
            staging.replace(target)
        except OSError as error:
            raise RunError(f"{name} cannot be written: {error.strerror or error}") from error


class FileTarget(NamedTuple):
    """What is written for an output file."""

    path: Path
    """Where a link leads: it stays, and its target is replaced."""
    special: bool
    """Whether it is a device, a pipe or an open file."""


def file_target(output: Path, *, option: str = "--output") -> FileTarget:
    """Find out what is written for a file, and make its folder; raise `ConfigError` where that cannot be.

    A command may call this before an hour's work.
    """
    name = f"{option} {str(output)!r}"
    with _refusing(name):
        if output.is_dir():
            raise ConfigError(f"{name} is a folder; expected a file")
        special = _descriptor(output) is not None or (output.exists() and not output.is_file())
        target = output if special else output.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        return FileTarget(target, special)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn what the system says of a path into a `ConfigError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        not_a_folder = isinstance(error, FileExistsError)
        reason = "Not a directory" if not_a_folder else getattr(error, "strerror", None) or error
        raise ConfigError(f"{name} cannot be written: {reason}") from None


@contextmanager
def atomic_file(output: Path, *, option: str = "--output", replace: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file next to `output`, and rename it to `output` once complete; remove it on any error.

    Without `replace`, a file of that name is an error, also if it appears while this one is written. A device, a pipe
    or an open file (`/dev/stdout`) is written directly. `option` names the path in errors.
    """
    name = f"{option} {str(output)!r}"
    target, special = file_target(output, option=option)
    path = target
    with ExitStack() as temporary:
        with _refusing(name):
            if not (special or replace) and target.exists():
                raise _existing(name)
            if (descriptor := _descriptor(output)) is not None:
                # opened by its name, a file behind it would be written from its start
                file: BinaryIO = os.fdopen(os.dup(descriptor), "wb")
            elif special:
                file = path.open("wb")
            else:
                path, file = temporary.enter_context(staging_file(target))
        try:
            with file, safe_on_terminal(file) as opened:
                yield opened
            if not special:
                _publish(path, target, replace=replace)
        except BrokenPipeError:
            raise
        except FileExistsError:
            raise RunError(
                f"{name} was made by somebody else meanwhile, and is left as it is; run again with another name"
            ) from None
        except OSError as error:
            raise RunError(f"{name} cannot be written: {error.strerror or error}") from error


def _publish(path: Path, target: Path, *, replace: bool) -> None:
    """Give a complete file its name; raise `FileExistsError` where another has it and may not be replaced."""
    if not replace:
        try:
            os.link(path, target)  # fails if the name is taken; a rename would replace that file
            return
        except FileExistsError:
            raise
        except OSError as error:  # a file system without hard links: a file made right now would be replaced
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
    path.replace(target)


def print_summary(pipeline: Pipeline, *, as_json: bool, packs: CountedPacks | None = None) -> None:
    """Print to stderr how many rows were read, written and dropped, and how full the packs are."""
    counts = pipeline.counts
    if as_json:
        adapter = pipeline.adapter.name if pipeline.adapter else None
        values = {"adapter": adapter, **counts.as_dict(), **(packs.as_dict() if packs else {})}
        print_json(values, err=True)
        return
    if pipeline.options.adapter is None and pipeline.adapter is not None:
        say(f"adapter: {pipeline.adapter.name} (inferred from the records' keys)", err=True)
    for line in counts.lines(tokens=pipeline.tokenizer is not None):
        say(line, err=True)
    if packs is not None:
        say(packs.line(), err=True)
