"""Garbage collection for work that makes many small objects, none of which refer to each other in circles."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

Item = TypeVar("Item")

OBJECTS = 100_000
"""New ones that Python looks through for circles; its own default of 700 or so took half of the time."""

_lock = Lock()
_threads = 0
_before = (0, 0, 0)


def rarely_collected(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each made while Python looks for garbage in circles more rarely.

    What is freed by counting is freed as ever. Whoever uses the items finds the threshold that was set before.
    """
    iterator = iter(items)
    while True:
        with _raised():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextmanager
def _raised() -> Iterator[None]:
    """The threshold is the process's: the first thread raises it, and the last one puts it back."""
    global _threads, _before
    with _lock:
        if not _threads:
            _before = gc.get_threshold()
            if 0 < _before[0] < OBJECTS:
                gc.set_threshold(OBJECTS, *_before[1:])
        _threads += 1
    try:
        yield
    finally:
        with _lock:
            _threads -= 1
            if not _threads:
                gc.set_threshold(*_before)
