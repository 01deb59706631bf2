"""Outputs under a temporary name until they are complete; those of a process that was killed are removed by the next.

A process holds a lock (flock) on what it writes. The system releases the lock when the process ends in any way, so a
temporary file without a lock has no writer. Where locks do not work, as on Windows and on some network drives, a file
counts as left after an hour without a change.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

PREFIX = ".making-"
"""The start of the name of what is not complete."""
_ABANDONED_SECONDS = 3600
_KEPT_OF_NAME = 50
"""Characters of the target's name in the temporary one: a name may have 255 bytes."""
_NOT_FOLLOWED: int = getattr(os, "O_NOFOLLOW", 0)
_Lock = Literal["held", "taken", "unknown"]


def open_regular(path: Path, flags: int) -> int:
    """Open a file at a name that others can guess: never through a link, and nothing but a regular file of one name.

    `flags` are those of `os.open` besides. Raises `OSError`.
    """
    # A pipe would wait for its other end.
    flags |= _NOT_FOLLOWED | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link is not followed here", str(path)) from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        kind = "a file with several names" if stat.S_ISREG(found.st_mode) else "no regular file"
        raise OSError(errno.EINVAL, f"found {kind}", str(path))
    return descriptor


class StagedFile(NamedTuple):
    """A new file, to be written, closed, and renamed or linked to its own name."""

    path: Path
    file: BinaryIO


@contextmanager
def staging_file(target: Path) -> Iterator[StagedFile]:
    """An empty file beside `target`, locked in the context, and removed at its end unless it was renamed.

    Removes what killed processes left for the same target. Raises `OSError` where the file cannot be made.
    """
    remove_abandoned(target.parent, target.name)
    while True:
        path = temporary_name(target)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOT_FOLLOWED, 0o666)
        if _is_own(path, descriptor):
            break
        os.close(descriptor)
    # The lock stays until both are closed. Windows has none, and neither renames nor removes a file that is open.
    lock = None if sys.platform == "win32" else os.dup(descriptor)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield StagedFile(path, file)
    finally:
        with suppress(OSError):
            path.unlink()
        if lock is not None:
            os.close(lock)


@contextmanager
def staging_folder(target: Path, *, remove_others: bool = True) -> Iterator[Path]:
    """An empty folder beside `target`, locked in the context, and removed at its end unless it was renamed.

    Removes what killed processes left for the same target, with `remove_others`. Raises `OSError` where the folder
    cannot be made.
    """
    if remove_others:
        remove_abandoned(target.parent, target.name)
    while True:
        path = temporary_name(target)
        path.mkdir()
        if sys.platform == "win32":  # no descriptors of folders there
            descriptor = None
            break
        descriptor = os.open(path, os.O_RDONLY | _NOT_FOLLOWED)
        if _is_own(path, descriptor):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def replace_file(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file atomically: a killed process leaves the complete new file or the old one. Raises `OSError`.

    With `sync`, that also holds where the machine loses its power.
    """
    with staging_file(path) as staging:
        with staging.file as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        staging.path.replace(path)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in a folder, for the target of that name or for all; what is written stays."""
    target = ".*" if name is None else re.escape(name[:_KEPT_OF_NAME])
    pattern = re.compile(f"{re.escape(PREFIX)}{target}-[0-9a-f]{{8}}", re.DOTALL)
    try:
        found = [Path(entry.path) for entry in os.scandir(folder) if pattern.fullmatch(entry.name)]
    except OSError:  # there is no such folder, or it cannot be read
        return
    for path in found:
        with suppress(OSError):
            _remove_if_abandoned(path)


def temporary_name(target: Path) -> Path:
    """A new name beside `target` for what is not complete, or no longer: it is removed like an abandoned file."""
    return target.with_name(f"{PREFIX}{target.name[:_KEPT_OF_NAME]}-{secrets.token_hex(4)}")


def _remove_if_abandoned(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # made by nobody here
        return
    lock: _Lock = "unknown"
    descriptor = None
    if sys.platform != "win32":
        # A writer on a network's file system locks what is open for writing; folders can be open for reading alone.
        access = os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR
        descriptor = os.open(path, access | _NOT_FOLLOWED | os.O_NONBLOCK)
        lock = _lock(descriptor)
    try:
        if lock == "taken" or (lock == "unknown" and not _is_old(path)):
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> _Lock:
    """Lock an open file: `held` from now on, `taken` by another process, `unknown` where there are no locks."""
    if sys.platform == "win32":
        return "unknown"
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unknown"
    return "held"


def _is_own(path: Path, descriptor: int) -> bool:
    """Lock a new file or folder. False where another process took it for abandoned before it was locked."""
    if _lock(descriptor) == "taken":
        return False
    try:
        return path.lstat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _is_old(path: Path) -> bool:
    inside = path.iterdir() if path.is_dir() else ()
    newest: float = max(each.lstat().st_mtime for each in (path, *inside))
    return time.time() - newest > _ABANDONED_SECONDS
