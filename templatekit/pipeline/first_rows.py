"""Which row a text was first seen in: what finds duplicates, and the one thing that grows with the rows.

Texts are kept as 8-byte BLAKE2b hashes in sorted arrays, with their row numbers: 16 bytes a text, for a moment twice
that where arrays are merged. Two different texts of ten million have the same hash with a chance of 1 in 370,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def text_key(text: str) -> int:
    """The hash under which a text is kept."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class _Run(NamedTuple):
    keys: NDArray[np.uint64]
    """Rising, without repeats."""
    rows: NDArray[np.int64]


class FirstRows:
    """The first row of each key."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        """The longest first; each at least twice as long as the next, so that there are few."""

    def find(self, keys: Sequence[int]) -> list[int | None]:
        """Each key's first row; None for keys that are new."""
        wanted = np.array(keys, dtype=np.uint64)
        found = np.full(len(wanted), -1, dtype=np.int64)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run.keys, wanted), len(run.keys) - 1)
            same = run.keys[places] == wanted
            found[same] = run.rows[places[same]]
        return [row if row >= 0 else None for row in found.tolist()]

    def add(self, keys: Sequence[int], rows: Sequence[int]) -> list[int | None]:
        """`find`, and keeps the new keys. A key's first row may stand in `rows` itself."""
        firsts = self.find(keys)
        new: dict[int, int] = {}
        for index, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if firsts[index] is None:
                first = new.setdefault(key, row)
                firsts[index] = first if first != row else None
        if new:
            self._keep(np.fromiter(new.keys(), np.uint64, len(new)), np.fromiter(new.values(), np.int64, len(new)))
        return firsts

    def _keep(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        while self._runs and len(self._runs[-1].keys) < 2 * len(keys):
            last = self._runs.pop()
            keys, rows = np.concatenate([last.keys, keys]), np.concatenate([last.rows, rows])
        order = np.argsort(keys)
        self._runs.append(_Run(keys[order], rows[order]))

    @property
    def nbytes(self) -> int:
        """How much memory the keys and rows take."""
        return sum(run.keys.nbytes + run.rows.nbytes for run in self._runs)
