"""How long texts are, counted in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from templatekit.audit.values import Lengths

OVER = (512, 1024, 2048, 4096)
EXACT = 65_536
"""Lengths up to here are counted each; longer ones by their first three digits."""


class LengthCounter:
    """Counts lengths; the memory depends on how many different ones there can be, not on how many come."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._longest = (-1, 0)

    def add(self, length: int, row: int) -> None:
        """One text's."""
        if length > self._longest[0]:
            self._longest = (length, row)
        if length > EXACT:
            digits = 10 ** (len(str(length)) - 3)
            length -= length % digits
        self._counts[length] += 1

    def result(self, unit: Literal["tokens", "characters"]) -> Lengths | None:
        """The distribution; None where there were no texts."""
        if not self._counts:
            return None
        ordered = sorted(self._counts.items())
        total = self._counts.total()

        def quantile(percent: int) -> int:
            """The least length that at least so many of a hundred texts do not exceed."""
            left = -(-total * percent // 100)
            for length, count in ordered:
                left -= count
                if left <= 0:
                    return length
            raise AssertionError("the counts add up to the total")

        return Lengths(
            unit=unit,
            shortest=ordered[0][0],
            median=quantile(50),
            p95=quantile(95),
            p99=quantile(99),
            longest=self._longest[0],
            longest_row=self._longest[1],
            over={limit: sum(count for length, count in ordered if length > limit) for limit in OVER},
        )
