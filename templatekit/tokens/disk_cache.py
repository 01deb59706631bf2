"""What takes long to make for a tokenizer, kept with the user's caches: to read it out of a model's file takes seconds.

Where nothing can be kept (a full disk, a folder that may not be written) it is made each time.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from templatekit.config.folders import cache_folder

_FORMAT = "tokenizers-1"
_HEAD = 2**26
"""Bytes at a file's beginning that are compared: the tokenizer lies before the weights, and takes some 10 MB."""
_READERS = ("transformers", "tokenizers", "gguf")
_CHECK = 16
"""Bytes of the digest in front of what is kept as bytes."""


class Description(NamedTuple):
    """What a `Tokenizer` is made of."""

    definition: str
    """The text of tokenizer.json."""
    config: Mapping[str, Any]
    chat_template: str | None


def kept(path: Path, read: Callable[[], Description]) -> Description:
    """What `read` gives for a model's file, or gave for the same file before.

    The same is one of equal beginning, size and time of change, read by the same versions of what reads it.
    """
    try:
        file = _file(path)
    except OSError:  # what is wrong with it, reading it says
        return read()
    try:
        found = Description(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or not what was written
        found = read()
        with suppress(OSError):
            _write(file, json.dumps(found._asdict()).encode())
    return found


def kept_bytes(key: Iterable[str], packages: Iterable[str], make: Callable[[], bytes | None]) -> bytes | None:
    """What `make` gives, or gave before for an equal key with the same versions of the packages; None is not kept."""
    import xxhash

    digest = xxhash.xxh3_128(repr([*key, *map(_version, packages)]).encode())
    file = cache_folder() / _FORMAT / f"{digest.hexdigest()}.bin"
    try:
        content = file.read_bytes()
    except OSError:
        content = b""
    found, check = content[_CHECK:], content[:_CHECK]
    if check and xxhash.xxh3_128_digest(found) == check:  # else it is not there, or damaged
        return found
    made = make()
    if made is not None:
        with suppress(OSError):
            _write(file, xxhash.xxh3_128_digest(made) + made)
    return made


def kept_files(folder: Path) -> list[Path]:
    """The files of all that is kept of tokenizers in a cache's folder."""
    return sorted(folder.glob("tokenizers-*/[!.]*"))


def _file(path: Path) -> Path:
    import xxhash

    state = path.stat()
    with path.open("rb") as file:
        digest = xxhash.xxh3_128(file.read(_HEAD))
    digest.update(repr([state.st_size, state.st_mtime_ns, *map(_version, _READERS)]).encode())
    return cache_folder() / _FORMAT / f"{digest.hexdigest()}.json"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all, whoever writes the same at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".making-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        made.write_bytes(content)
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)
