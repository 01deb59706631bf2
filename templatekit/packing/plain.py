"""Which examples come together in a pack, where nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Puts items into packs of at most `budget` tokens: indices into `lengths`, rising within each pack.

    First fit, longest first, so equal input gives equal packs. An item longer than the budget gets a pack alone; an
    item of length 0 is in none.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length == 0:
            continue
        place = next((place for place, free in enumerate(room) if length <= free), None)
        if place is None:
            packs.append([index])
            room.append(budget - length)
        else:
            packs[place].append(index)
            room[place] -= length
    return [sorted(items) for items in packs]
