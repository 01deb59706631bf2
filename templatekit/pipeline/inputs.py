"""What the options of a command read on this machine, so that no output is written over it.

`read_paths` asks the sources, the templates and the models for the files behind the names that options give.
`check_output_file` and `check_output_folder` compare an output with them by identity, so that links, relative paths and
other spellings of a name count as the file that they lead to. Names that lead nowhere are no inputs: the command itself
says what is wrong with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from templatekit.config.data_options import DataOptions
from templatekit.errors import ConfigError, TemplatekitError
from templatekit.formats.lookup import template_file
from templatekit.hooks.registry import Registry
from templatekit.sources.files import exists, is_folder, to_path
from templatekit.sources.opening import find_source
from templatekit.tokens.load import resolve_model
from templatekit.tokens.tokenizer import TOKENIZER_FILE


class ReadPath(NamedTuple):
    """A file that is read, or a folder, of which any file may be read."""

    path: Path
    option: str
    """The option that names it, with its value, for errors."""


def read_paths(options: DataOptions, registry: Registry, *, against: Iterable[str] = ()) -> list[ReadPath]:
    """The files and folders that a command with these options reads; `against` are further data sets of an audit."""
    data = [("--mix", mixed.dataset) for mixed in options.mix] or [("--dataset", options.dataset)]
    data += [("--against", address) for address in against]
    if (held_out := getattr(options, "eval_dataset", None)) is not None:
        data.append(("--eval-dataset", held_out))
    templates = dict.fromkeys(mixed.template or options.template for mixed in options.mix) or [options.template]
    models = [("--tokenizer", options.tokenizer), ("--model", getattr(options, "model", None))]
    return [
        *(path for option, address in data for path in _data(option, address, registry)),
        *(path for name in templates for path in template_paths("--template", name, registry)),
        *(path for option, name in models if name is not None for path in model_paths(option, name, registry)),
        *plugin_paths(registry),
    ]


def template_paths(option: str, name: str, registry: Registry) -> list[ReadPath]:
    """The file of a template, where it has one; `option` is what names it."""
    try:
        path = template_file(name, registry)
    except TemplatekitError:
        return []
    return [] if path is None else [ReadPath(path, f"{option} {name!r}")]


def model_paths(option: str, name: str, registry: Registry) -> list[ReadPath]:
    """The folder of a model or tokenizer, or its `.gguf` file; nothing for one on the hub."""
    try:
        path = resolve_model(name, registry)
    except TemplatekitError:
        return []
    if path is None:
        return []
    return [ReadPath(path.parent if path.name == TOKENIZER_FILE else path, f"{option} {name!r}")]


def plugin_paths(registry: Registry) -> list[ReadPath]:
    """The files of the loaded plugins."""
    files = ((plugin.name, getattr(plugin.module, "__file__", None)) for plugin in registry.plugins)
    return [ReadPath(Path(file), f"plugin {name!r}") for name, file in files if isinstance(file, str)]


def check_output_file(output: Path, name: str, paths: Sequence[ReadPath]) -> None:
    """Raise `ConfigError` where a file to write is one that is read. `name` is the output in errors."""
    identity = _identity(output)
    if identity is None or is_folder(output):
        return  # nothing is written over
    for read in paths:
        if not is_folder(read.path):
            if identity == _identity(read.path):
                raise ConfigError(
                    f"{name} is the file of {read.option}, which is read here and would be lost; name another file"
                )
        elif identity in map(_identity, _entries(read.path)) or _belongs_to(output, read.path):
            raise ConfigError(
                f"{name} is a file in the folder of {read.option}, which is read here and would be damaged; name "
                "another file"
            )


def check_output_folder(output: Path, name: str, paths: Sequence[ReadPath]) -> None:
    """Raise `ConfigError` where a folder to write to is one that is read, holds one, or lies in one."""
    identity = _identity(output)
    for read in paths:
        if identity is not None and identity in map(_identity, _around(read.path)):
            raise ConfigError(f"{name} is or holds the data of {read.option}, which is read here; name another folder")
        if is_folder(read.path) and _belongs_to(output, read.path):
            raise ConfigError(f"{name} lies in the folder of {read.option}, which is read here; name another folder")


def _data(option: str, address: str, registry: Registry) -> Iterator[ReadPath]:
    """The files of a data set; its address, if that is a path, where the source does not tell its files."""
    try:
        files = find_source(address, registry).files(address)
    except Exception:  # a plugin's code may raise anything; so do addresses that lead nowhere
        files = None
    if files is None:
        named = (to_path(text) for text in (address, address.rpartition(":")[0]) if text)
        files = [path for path in named if exists(path)][:1]
    if address == "-":
        files = [Path("/dev/stdin")]  # `< rows.jsonl`: the file behind standard input
    return (ReadPath(Path(file), f"{option} {address!r}") for file in files)


def _around(path: Path) -> set[Path]:
    """The path and all folders that hold it: by its name, and where its links lead."""
    spellings = os.path.normpath(path.absolute()), os.path.realpath(path)  # `Path.resolve` raises for a loop of links
    return {folder for spelling in map(Path, spellings) for folder in (spelling, *spelling.parents)}


def _belongs_to(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder that nobody works in: with `--model .`, `runs/x` is not a part of the model."""
    identity = _identity(folder)
    worked_in = identity in map(_identity, _around(Path.cwd()))
    return not worked_in and identity in map(_identity, _around(path))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _identity(path: Path) -> tuple[int, int] | None:
    """The device and the number of the file that a path leads to; None where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
