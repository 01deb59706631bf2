"""The run folder: its choice and its lock, and its files besides metrics, checkpoints and the model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import yaml

from templatekit.config.finetune_options import FinetuneOptions
from templatekit.config.staging import PREFIX, open_regular, remove_abandoned, replace_file
from templatekit.errors import ConfigError, RunError
from templatekit.pipeline.inputs import ReadPath, check_output_folder
from templatekit.training.checkpoint import has_checkpoints

RECIPE = "recipe.yaml"
"""The resolved options, with which the run can be repeated."""
TEMPLATE = "template.jinja"
"""The template's source, with which `generate` prompts."""
PICTURE = "loss.png"
SUMMARY = "run.json"
_LOCK = ".lock"


def run_folder(options: FinetuneOptions, read: Sequence[ReadPath] = ()) -> Path:
    """The folder of the run, created if it does not exist. `read` is what the run reads.

    Raises `ConfigError` where a new run would overwrite another one or any other file, where a run would overwrite what
    it reads, or where there is no run to resume.
    """
    folder = options.output
    if folder is None:
        if options.resume:
            raise ConfigError("--resume needs --output: the folder of the run to go on with")
        folder = _free_folder(options)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {str(folder)!r} is a file; expected a folder")
    check_output_folder(folder, f"output {str(folder)!r}", read)
    if ((folder / RECIPE).exists() or has_checkpoints(folder)) and not options.resume:
        raise ConfigError(
            f"output {str(folder)!r} holds another run; go on with it (--resume) or choose another folder (--output)"
        )
    if not options.resume and (others := _files_of_others(folder)):
        raise ConfigError(
            f"output {str(folder)!r} holds files and no run: {', '.join(map(repr, others[:3]))}; choose a new or an "
            "empty folder (--output)"
        )
    if options.resume and not has_checkpoints(folder) and not (folder / RECIPE).exists():
        # A run that was killed before its first checkpoint has a recipe; it starts again in its own folder.
        raise ConfigError(
            f"--resume: no run and no checkpoint in {str(folder)!r}; leave --resume out to begin a run there"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output {str(folder)!r} cannot be made: {error.strerror}") from None
    return folder


def _files_of_others(folder: Path) -> list[str]:
    """The names in a folder that are not those of a run that was killed before it had a recipe."""
    if not folder.exists():
        return []
    try:
        names = sorted(path.name for path in folder.iterdir())
        return [name for name in names if name != _LOCK and not name.startswith(f"{PREFIX}{RECIPE}-")]
    except OSError as error:
        raise ConfigError(f"output {str(folder)!r} cannot be read: {error.strerror}") from None


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock a run folder inside the context, and remove what a killed run had begun to write there.

    Raises `RunError` where another process holds the lock, and `ConfigError` for a folder that cannot be written. The
    lock's file is written only if it is one: a link at its name, or a second name of another file, is an error.
    """
    if sys.platform == "win32":  # no flock there
        yield
        return
    import fcntl

    try:
        descriptor = open_regular(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ConfigError(f"output {str(folder)!r} cannot be written: {_LOCK}: {error.strerror}") from error
    with os.fdopen(descriptor, "r+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = handle.read().strip() or "unknown"
            raise RunError(f"output {str(folder)!r} is in use by another process (pid {holder})") from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        remove_abandoned(folder)
        yield


def _free_folder(options: FinetuneOptions) -> Path:
    """`runs/DATASET-TEMPLATE`, with a number where that exists."""
    name = f"{Path(options.dataset.split(':')[0]).name.split('.')[0]}-{Path(options.template).stem}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(folder for folder in map(Path("runs").joinpath, names) if not folder.exists())


def write_recipe(folder: Path, options: FinetuneOptions, *, adapter: str | None, template: str) -> None:
    """Write the options, including a detected adapter, and the template's source.

    Whether to run Python of the model is left out: a recipe must not say that to whoever takes it over.
    """
    resolved = options.model_copy(update={"output": folder, "adapter": adapter, "resume": False})
    text = yaml.safe_dump(
        resolved.model_dump(mode="json", exclude={"trust_remote_code"}), sort_keys=False, allow_unicode=True
    )
    write_text(folder / RECIPE, text)  # first: it is what makes the folder a run
    write_text(folder / TEMPLATE, template)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a killed process leaves the complete new file or the old one."""
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
