"""Decides which examples go into one pack if no prefixes are shared: bin packing by first fit, longest first."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put items of these lengths into packs of at most `budget` tokens.

    Returns the indices of each pack's items, in ascending order. Equal input gives equal packs. An item longer than the
    budget gets a pack of its own; an item of length 0 is in no pack.
    """
    packs: list[list[int]] = []
    free = _FreeTokens(len(lengths), budget)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length == 0:
            continue
        chosen = len(packs) if length > budget else free.first(length)
        if chosen == len(packs):
            packs.append([])
        packs[chosen].append(index)
        free.take(chosen, length)
    return [sorted(items) for items in packs]


class _FreeTokens:
    """How many tokens each pack still has room for, as a binary tree in which the first fit takes O(log n) steps.

    The tree is an array: node n has the children 2n and 2n + 1, and holds the largest number among its packs. Packs
    that are not used yet have the whole budget.
    """

    def __init__(self, packs: int, budget: int) -> None:
        self._leaves = 1 << max(0, packs - 1).bit_length()
        self._largest = [budget] * (2 * self._leaves)

    def first(self, length: int) -> int:
        """The first pack with room for `length` tokens; there always is one."""
        largest, node = self._largest, 1
        while node < self._leaves:
            node *= 2
            if largest[node] < length:
                node += 1
        return node - self._leaves

    def take(self, pack: int, length: int) -> None:
        """Use `length` tokens of a pack."""
        largest, node = self._largest, self._leaves + pack
        largest[node] -= length
        while node := node // 2:
            largest[node] = max(largest[2 * node], largest[2 * node + 1])
