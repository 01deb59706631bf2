"""Caches slow computations about tokenizers on disk: reading a tokenizer from a model's file takes seconds.

Where nothing can be written (a full disk, a folder without permission), the value is computed each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from templatekit.config.cache_folder import cache_folder
from templatekit.config.staging import remove_abandoned, replace_file

_FORMAT = "tokenizers-2"
_COMPARED_BYTES = 2**26
"""Bytes at the start of a model's file that are hashed; the tokenizer comes before the weights, and has some 10 MB."""
_READERS = ("transformers", "tokenizers", "gguf")
_DIGEST_SIZE = 16
"""Bytes of the digest at the start of a file of cached bytes."""


class TokenizerDescription(NamedTuple):
    """The arguments of a `Tokenizer`."""

    definition: str
    """The text of tokenizer.json."""
    config: Mapping[str, Any]
    chat_template: str | None


def cached_description(path: Path, read: Callable[[], TokenizerDescription]) -> TokenizerDescription:
    """The result of `read` for a model's file, cached.

    A file counts as the same if its first bytes, size and modification time are equal, and so are the versions of the
    packages that read it.
    """
    import xxhash

    try:
        state = path.stat()
        with path.open("rb") as file:
            start = xxhash.xxh3_128_hexdigest(file.read(_COMPARED_BYTES))
    except OSError:  # `read` raises an error that names the reason
        return read()
    key = [start, str(state.st_size), str(state.st_mtime_ns)]
    found = cached_bytes(key, _READERS, lambda: json.dumps(read()._asdict()).encode())
    assert found is not None
    return TokenizerDescription(**json.loads(found))


def cached_bytes(key: Iterable[str], packages: Iterable[str], make: Callable[[], bytes | None]) -> bytes | None:
    """The result of `make`, cached under a key and the versions of some packages; None is not cached.

    The digest at the start of the file is that of the key and the content: a file under another's name is not taken.
    """
    import xxhash

    key_digest = xxhash.xxh3_128(repr([*key, *map(_version, packages)]).encode())
    file = cache_folder() / _FORMAT / f"{key_digest.hexdigest()}.bin"
    try:
        content = file.read_bytes()
    except OSError:
        content = b""
    found, check = content[_DIGEST_SIZE:], content[:_DIGEST_SIZE]
    if check and xxhash.xxh3_128_digest(key_digest.digest() + found) == check:  # else absent, damaged or another's
        return found
    made = make()
    if made is not None:
        with suppress(OSError):
            _write(file, xxhash.xxh3_128_digest(key_digest.digest() + made) + made)
    return made


def cached_files(folder: Path) -> list[Path]:
    """The files in a cache folder that hold cached values of tokenizers."""
    return sorted(folder.glob("tokenizers-*/[!.]*"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write(file: Path, content: bytes) -> None:
    """Write the whole file or nothing, even if other processes write the same file at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(file.parent)  # also of other files: a key that no run has again is never written again
    replace_file(file, content)
