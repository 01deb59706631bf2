"""The folder of the cache: opens an entry, lists entries and removes them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from templatekit.cache.atomic_files import Damaged, reporting_write_errors
from templatekit.cache.key import FORMAT
from templatekit.cache.shard import Shard
from templatekit.config.staging import PREFIX, remove_abandoned, replace_file, temporary_name
from templatekit.errors import ConfigError
from templatekit.pipeline.pipeline import Pipeline

ABOUT = "about.json"
_PREPARED = "prepared-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The cached samples of one data set, prepared in one way."""

    key: str
    path: Path
    bytes: int
    """Size of all its files, unfinished ones included."""
    records: int
    examples: int
    shards: int
    age: float
    """Seconds since a run last used it."""
    damaged: int
    """Number of damaged shards; the next run makes them anew."""
    about: Mapping[str, Any]
    """Its origin: dataset, adapter, template, tokenizer, options. Empty if the file that says so cannot be read."""

    def as_dict(self) -> dict[str, Any]:
        """The entry as JSON holds it; `parts` is the number of shards."""
        values = {"parts" if name == "shards" else name: value for name, value in asdict(self).items()}
        return {**values, "path": str(self.path), "age": round(self.age)}


def open_entry(folder: Path, key: str, values: Mapping[str, Any], pipeline: Pipeline) -> Path:
    """The folder of a key, created if it does not exist; `values` are the values of which the key is the hash.

    Raises `ConfigError` where a file is in its place, and `RunError` on a full disk.
    """
    path = folder / f"{_PREPARED}{FORMAT}" / key
    if (path.exists() and not path.is_dir()) or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"cache {str(folder)!r}: found a file; expected a folder; name another (--cache-dir)")
    with reporting_write_errors(folder):
        path.mkdir(parents=True, exist_ok=True)
        if not _read_about(path):
            about = {
                "key": key,
                "dataset": pipeline.options.dataset,
                "adapter": pipeline.options.adapter,
                "template": pipeline.template.name,
                "tokenizer": pipeline.tokenizer.name if pipeline.tokenizer else None,
                "options": values["options"],
                "templatekit": values["templatekit"].partition(" ")[0],
                "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            replace_file(path / ABOUT, (json.dumps(about, ensure_ascii=False, indent=1) + "\n").encode())
        os.utime(path)  # the age counts from the last use
    for place in (path, path.parent):  # in the second, what a killed `cache clear` had begun to remove
        remove_abandoned(place)
    return path


def shard_folder(entry: Path, index: int) -> Path:
    """The folder of a shard, whether it exists or not."""
    return entry / f"{index:08d}"


def shard_indices(entry: Path) -> list[int]:
    """The indices of the shards that exist, damaged ones included."""
    return [int(shard.name) for shard in entry.glob("[0-9]*") if shard.name.isdigit()]


def remove_shard(path: Path) -> None:
    """Remove a shard, or a file in its place. It is renamed first, so that no process sees half of it."""
    gone = temporary_name(path)
    with reporting_write_errors(path.parent):
        path.rename(gone)
    if gone.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
    else:
        gone.unlink(missing_ok=True)


def entries(folder: Path) -> list[Entry]:
    """The entries in a cache's folder, the last used first."""
    folders = (path for path in folder.glob(f"{_PREPARED}*/*") if path.is_dir() and not path.name.startswith(PREFIX))
    found = [_entry(path) for path in folders]
    return sorted(found, key=lambda entry: entry.age)


def remove(chosen: Iterable[Entry]) -> int:
    """Remove entries and return how many bytes that frees. A run that reads one of them keeps its files open.

    Raises `RunError` where an entry cannot be removed.
    """
    freed = 0
    for entry in chosen:
        remove_abandoned(entry.path.parent)
        with reporting_write_errors(entry.path.parent):
            gone = temporary_name(entry.path)
            entry.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)  # another process may remove it too, as abandoned
            if gone.exists():
                gone.rmdir()  # raises the error that says why
        freed += entry.bytes
    return freed


def _entry(path: Path) -> Entry:
    files = [file for file in path.rglob("*") if file.is_file()]
    sizes = 0
    for file in files:
        try:
            sizes += file.stat().st_size
        except OSError:  # another process removed the entry
            continue
    shards, damaged = [], 0
    for folder in sorted(path.glob("[0-9]*")):
        try:
            shards.append(Shard(folder))
        except Damaged:
            damaged += 1
    return Entry(
        key=path.name,
        path=path,
        bytes=sizes,
        records=sum(shard.records for shard in shards),
        examples=sum(map(len, shards)),
        shards=len(shards),
        age=max(0.0, time.time() - path.stat().st_mtime),
        damaged=damaged,
        about=_read_about(path),
    )


def _read_about(path: Path) -> dict[str, Any]:
    """What an entry's file says about it; empty if it cannot be read, or is the file of another entry."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) and about.pop("key", None) == path.name else {}
