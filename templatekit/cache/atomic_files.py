"""Files that are whole or absent: written elsewhere, brought to the disk, and renamed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from templatekit.errors import RunError

STATE = "part.json"
"""What is known of a part, and size and hash of its files."""
MAKING = ".making-"
"""How names of what is being written begin. What a killed process left is removed after an hour."""
_ABANDONED_SECONDS = 3600
_BLOCK = 2**22


class Damaged(RunError):
    """A part that is not what was written; the message says in what.

    Where one is opened it is made anew. It stops a run whose files are damaged under its hands."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the disk refuses becomes a `RunError`."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cache {str(folder)!r} cannot be written: {error.strerror or error}; make room there, name another "
            "folder (--cache-dir), or go without (--no-cache)"
        ) from error


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder beside `target` that is brought to the disk and takes its name when all is written."""
    folder = target.with_name(f"{MAKING}{target.name}-{secrets.token_hex(4)}")
    try:
        with writing(target.parent):
            folder.mkdir(parents=True)
            yield folder
            for path in folder.iterdir():
                _sync(path)
            _sync(folder)
            try:
                folder.rename(target)
            except OSError:
                if not (target / STATE).is_file():  # another process was quicker
                    raise
            _sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes parts that a killed process left half written; those that may still be written stay."""
    for path in folder.glob(f"{MAKING}*"):
        with suppress(OSError):
            newest = max(one.stat().st_mtime for one in (path, *path.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Brings a file, or a folder's list of names, to the disk."""
    if sys.platform == "win32" and path.is_dir():  # which cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """A hash of a file's whole content: sizes and times of change prove nothing."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def size_and_hash(path: Path) -> dict[str, Any]:
    """What a part's state says of a file."""
    return {"bytes": path.stat().st_size, "xxh3_128": hash_file(path)}


def check_size(path: Path, expected: int) -> None:
    """Raises `Damaged` where a file is not there or not as long."""
    try:
        size = path.stat().st_size
    except OSError:
        raise Damaged(f"{path}: is missing") from None
    if size != expected:
        raise Damaged(f"{path}: has {size} bytes; {STATE} says {expected}")


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """With a hash of its own in the first line."""
    import xxhash

    text = json.dumps(state).encode() + b"\n"
    path.write_bytes(xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote; raises `Damaged`."""
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
