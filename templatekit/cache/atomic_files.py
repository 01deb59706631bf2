"""Files that are complete or absent: written under another name, synced to disk, then renamed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from templatekit.config.staging import staging_folder
from templatekit.errors import RunError

STATE = "part.json"
"""Name of the file with a shard's state, and the size and hash of its files."""
_BLOCK_BYTES = 2**22


class Damaged(RunError):
    """A shard differs from what was written; the message says how.

    A shard that is damaged when it is opened is made anew. A shard that is damaged later, while a run reads it, stops
    the run."""


@contextmanager
def reporting_write_errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of the code in this context into a `RunError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cache {str(folder)!r} cannot be written: {error.strerror or error}; make room there, name another "
            "folder (--cache-dir), or go without (--no-cache)"
        ) from error


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside `target`. It is synced and renamed to `target` when the context ends without an error.

    What killed processes left is removed when the entry is opened, once for all its shards.
    """
    with reporting_write_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(target, remove_others=False) as folder:
            yield folder
            for path in folder.iterdir():
                sync_path(path)
            sync_path(folder)
            try:
                folder.rename(target)
            except OSError:
                if not (target / STATE).is_file():  # another process wrote the shard first
                    raise
            sync_path(target.parent)


def sync_path(path: Path) -> None:
    """Sync a file, or a folder's list of names, to the disk."""
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """A hash of a file's whole content: an equal size and modification time prove nothing."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_size(path: Path, expected: int) -> None:
    """Raise `Damaged` where a file is missing or has another size."""
    try:
        size = path.stat().st_size
    except OSError:
        raise Damaged(f"{path}: is missing") from None
    if size != expected:
        raise Damaged(f"{path}: has {size} bytes; {STATE} says {expected}")


def place_of(folder: Path) -> dict[str, str]:
    """Which shard of which entry lies in a folder, by the names of its path. The shard's state says the same."""
    return {"entry": folder.parent.name, "shard": folder.name}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a shard's state; the first line of the file is the hash of the rest."""
    import xxhash

    text = json.dumps(state).encode() + b"\n"
    path.write_bytes(xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text)


def read_state(path: Path) -> dict[str, Any]:
    """The state that `write_state` wrote; raises `Damaged`."""
    import xxhash

    try:
        digest, _, text = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise Damaged(f"{path}: is missing") from None
    except OSError as error:
        raise Damaged(f"{path}: cannot be read: {error.strerror or error}") from None
    if xxhash.xxh3_128_hexdigest(text).encode() != digest:
        raise Damaged(f"{path}: has another hash than its first line says")
    values: dict[str, Any] = json.loads(text)
    return values
