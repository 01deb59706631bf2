"""Which examples come together in a pack, where nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Puts items into packs of at most `budget` tokens: indices into `lengths`, rising within each pack.

    First fit, longest first, so equal input gives equal packs. An item longer than the budget gets a pack alone; an
    item of length 0 is in none.
    """
    packs: list[list[int]] = []
    rooms = _Rooms(len(lengths), budget)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length == 0:
            continue
        place = len(packs) if length > budget else rooms.first(length)
        if place == len(packs):
            packs.append([])
        packs[place].append(index)
        rooms.take(place, length)
    return [sorted(items) for items in packs]


class _Rooms:
    """How much room so many packs have, those that are not begun all of it: the first with enough is found by halves.

    A tree in an array: node n is over 2n and 2n + 1, and holds the most room of any pack under it.
    """

    def __init__(self, packs: int, budget: int) -> None:
        self._leaves = 1 << max(0, packs - 1).bit_length()
        self._most = [budget] * (2 * self._leaves)

    def first(self, length: int) -> int:
        """The first pack with room for `length`; there is one."""
        most, node = self._most, 1
        while node < self._leaves:
            node *= 2
            if most[node] < length:
                node += 1
        return node - self._leaves

    def take(self, pack: int, length: int) -> None:
        """Leaves a pack with so much less room."""
        most, node = self._most, self._leaves + pack
        most[node] -= length
        while node := node // 2:
            most[node] = max(most[2 * node], most[2 * node + 1])
