"""The folder of what is kept: where it is, what lies in it, and how that is removed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from templatekit.cache.atomic_files import MAKING, Damaged, sweep, writing
from templatekit.cache.key import FORMAT
from templatekit.cache.shard import Part
from templatekit.errors import ConfigError
from templatekit.pipeline.pipeline import Pipeline

ABOUT = "about.json"
_PREPARED = "prepared-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is kept of one data set, prepared in one way."""

    key: str
    path: Path
    bytes: int
    """All of its files, half-written ones among them."""
    records: int
    examples: int
    parts: int
    age: float
    """Seconds since it was last written to or read."""
    damaged: int
    """Parts that are not what was written; the next run makes them anew."""
    about: Mapping[str, Any]
    """What made it: dataset, adapter, template, tokenizer, options; empty where that cannot be read."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path), "age": round(self.age)}


def begin(folder: Path, key: str, parts: Mapping[str, Any], pipeline: Pipeline) -> Path:
    """The folder of a key, made if need be. Raises `ConfigError` where it cannot be, `RunError` on a full disk."""
    path = folder / f"{_PREPARED}{FORMAT}" / key
    if (path.exists() and not path.is_dir()) or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"cache {str(folder)!r}: found a file; expected a folder; name another (--cache-dir)")
    with writing(folder):
        path.mkdir(parents=True, exist_ok=True)
        if not (path / ABOUT).is_file():
            about = {
                "dataset": pipeline.options.dataset,
                "adapter": pipeline.options.adapter,
                "template": pipeline.template.name,
                "tokenizer": pipeline.tokenizer.name if pipeline.tokenizer else None,
                "options": parts["options"],
                "templatekit": parts["templatekit"].partition(" ")[0],
                "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            staged = path / f"{MAKING}{ABOUT}-{os.getpid()}"
            staged.write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            staged.replace(path / ABOUT)
        os.utime(path)  # so that its age says when it was last used
    sweep(path)
    return path


def part_folder(path: Path, number: int) -> Path:
    """Where a part lies, or is to lie."""
    return path / f"{number:08d}"


def part_numbers(path: Path) -> list[int]:
    """The numbers of the parts that are there, damaged ones among them."""
    return [int(part.name) for part in path.glob("[0-9]*") if part.name.isdigit()]


def remove_part(path: Path) -> None:
    """Removes a part, or what lies in its place, at once: half of one is never there."""
    gone = path.with_name(f"{MAKING}{path.name}-gone-{os.getpid()}")
    with writing(path.parent):
        path.rename(gone)
    if gone.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
    else:
        gone.unlink(missing_ok=True)


def entries(folder: Path) -> list[Entry]:
    """What is kept in a cache's folder, the latest used first."""
    found = [_entry(path) for path in folder.glob(f"{_PREPARED}*/*") if path.is_dir()]
    return sorted(found, key=lambda entry: entry.age)


def remove(chosen: Iterable[Entry], *, say: Callable[[str], None] = lambda line: None) -> int:
    """Removes entries; returns the number of bytes that are free again. A run that reads one has its files open.

    Raises `RunError` where one cannot be removed.
    """
    freed = 0
    for entry in chosen:
        with writing(entry.path.parent):
            gone = entry.path.with_name(f"{MAKING}{entry.path.name}-gone")
            entry.path.rename(gone)
            shutil.rmtree(gone)
        freed += entry.bytes
        say(entry.key)
    return freed


def _entry(path: Path) -> Entry:
    files = [file for file in path.rglob("*") if file.is_file()]
    sizes = 0
    for file in files:
        try:
            sizes += file.stat().st_size
        except OSError:  # removed meanwhile
            continue
    states, damaged = [], 0
    for part in sorted(path.glob("[0-9]*")):
        try:
            states.append(Part(part).state)
        except Damaged:
            damaged += 1
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = {}
    return Entry(
        key=path.name,
        path=path,
        bytes=sizes,
        records=sum(state.records for state in states),
        examples=sum(state.samples for state in states),
        parts=len(states),
        age=max(0.0, time.time() - path.stat().st_mtime),
        damaged=damaged,
        about=about if isinstance(about, dict) else {},
    )
