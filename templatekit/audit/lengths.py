"""Counts the lengths of texts in bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import Literal

from templatekit.audit.report import Lengths

LIMITS = (512, 1024, 2048, 4096)
MAX_EXACT = 65_536
"""Lengths up to this are counted exactly, longer ones by their first three digits."""


class LengthCounter:
    """Counts lengths. Memory is bounded by the number of different lengths, not of texts."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._longest = (-1, 0)

    def add(self, length: int, row: int) -> None:
        """Count the length of one text."""
        if length > self._longest[0]:
            self._longest = (length, row)
        if length > MAX_EXACT:
            digits = 10 ** (len(str(length)) - 3)
            length -= length % digits
        self._counts[length] += 1

    def result(self, unit: Literal["tokens", "characters"]) -> Lengths | None:
        """The distribution; None if there were no texts."""
        if not self._counts:
            return None
        ordered = sorted(self._counts.items())
        cumulative = list(accumulate(count for _, count in ordered))

        def quantile(percent: int) -> int:
            """The smallest length that this percentage of texts does not exceed."""
            rank = -(-cumulative[-1] * percent // 100)
            return ordered[bisect_left(cumulative, rank)][0]

        return Lengths(
            unit=unit,
            shortest=ordered[0][0],
            median=quantile(50),
            p95=quantile(95),
            p99=quantile(99),
            longest=self._longest[0],
            longest_row=self._longest[1],
            over={limit: sum(count for length, count in ordered if length > limit) for limit in LIMITS},
        )
