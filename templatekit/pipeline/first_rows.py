"""`FirstRows`: the row in which a text was first seen, to find duplicates.

Its memory grows with the rows, 16 bytes for each text: an 8-byte BLAKE2b hash and the row, in sorted arrays. While
arrays are merged, they take twice that. Among ten million different texts, two share a hash with a chance of 1 in
370,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def text_key(text: str) -> int:
    """The hash of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class _Run(NamedTuple):
    keys: NDArray[np.uint64]
    """Sorted, each once."""
    rows: NDArray[np.int64]


class FirstRows:
    """The first row of each key."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        """The longest first; each is at least twice as long as the next, so there are few to search."""

    def find(self, keys: Sequence[int]) -> list[int | None]:
        """The first row of each key; None for a new key."""
        wanted = np.array(keys, dtype=np.uint64)
        found = np.full(len(wanted), -1, dtype=np.int64)
        for run in self._runs:
            indices = np.minimum(np.searchsorted(run.keys, wanted), len(run.keys) - 1)
            same = run.keys[indices] == wanted
            found[same] = run.rows[indices[same]]
        return [row if row >= 0 else None for row in found.tolist()]

    def add(self, keys: Sequence[int], rows: Sequence[int]) -> list[int | None]:
        """The same, then store the new keys. The first row of a key may be among `rows` itself."""
        firsts = self.find(keys)
        new: dict[int, int] = {}
        for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if firsts[index] is None:
                first = new.setdefault(key, row)
                firsts[index] = first if first != row else None
        if new:
            self._store(np.fromiter(new.keys(), np.uint64, len(new)), np.fromiter(new.values(), np.int64, len(new)))
        return firsts

    def _store(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        while self._runs and len(self._runs[-1].keys) < 2 * len(keys):
            last = self._runs.pop()
            keys, rows = np.concatenate([last.keys, keys]), np.concatenate([last.rows, rows])
        order = np.argsort(keys)
        self._runs.append(_Run(keys[order], rows[order]))
