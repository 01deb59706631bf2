"""Prefix trees: what several examples begin with is laid into a pack once.

In a causal model the hidden states of a common beginning are the same for all that begin with it, and its gradient is
the sum of theirs. A template's preamble, a system prompt, the earlier turns of a conversation, the prompt of a
chosen/rejected pair are therefore computed once a pack, and loss and gradients stay what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MIN_SHARED = 8
"""The shortest run of tokens worth sharing: each shared run is a piece of attention of its own."""


class Node(NamedTuple):
    """A run of tokens that one or several items hold at the same place, behind the same tokens."""

    item: int
    """One of those items: the run is `items[item][start:end]`."""
    start: int
    end: int
    parent: int | None
    """Index of the node before it, which comes earlier in the list."""
    ending: tuple[int, ...]
    """The items that end with this node."""


def sort_by_prefix(items: Sequence[Sequence[int]]) -> list[int]:
    """The indices of the items, those with a long common beginning next to each other."""
    return sorted(range(len(items)), key=lambda index: (items[index], index))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two items begin with alike."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # one[:low] is equal, one[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def prefix_tree(items: Sequence[Sequence[int]], *, min_shared: int = MIN_SHARED) -> list[Node]:
    """The items' prefix tree in the order of a walk: a node stands before all that follows on it.

    A run shared by several items becomes a node of its own where it holds `min_shared` tokens or more, or where the
    items are equal. Every item ends with one node; an item without tokens is in none.
    """
    order = [index for index in sort_by_prefix(items) if items[index]]
    shared = [common_prefix(items[one], items[other]) for one, other in pairwise(order)]
    nodes: list[Node] = []
    # Runs of the order that agree on their first `depth` tokens, which `parent` ends with. The last is the next.
    stack: list[tuple[int, int, int, int | None]] = [(0, len(order), 0, None)] if order else []
    while stack:
        low, high, depth, parent = stack.pop()
        first = order[low]
        if high - low == 1:
            nodes.append(Node(first, depth, len(items[first]), parent, (first,)))
            continue
        common = min(shared[low : high - 1])
        if common - depth >= min_shared or len(items[order[high - 1]]) == common:  # or all of them are equal
            ending = []
            while low < high and len(items[order[low]]) == common:  # the shortest come first
                ending.append(order[low])
                low += 1
            nodes.append(Node(first, depth, common, parent, tuple(ending)))
            depth, parent = common, len(nodes) - 1
        groups = _parted(shared, low, high, common)
        stack += [(start, end, depth, parent) for start, end in reversed(groups)]
    return nodes


def _parted(shared: Sequence[int], low: int, high: int, common: int) -> list[tuple[int, int]]:
    """The runs of `low` to `high` whose neighbours share more than `common` tokens."""
    if low == high:
        return []
    cuts = [index + 1 for index in range(low, high - 1) if shared[index] == common]
    return list(zip([low, *cuts], [*cuts, high], strict=True))


def pack_sharing(items: Sequence[Sequence[int]], budget: int, *, min_shared: int = MIN_SHARED) -> list[list[int]]:
    """Puts items into packs whose prefix trees hold at most `budget` tokens, those that share most together.

    An item longer than the budget gets a pack alone; an item without tokens is in none. Equal input gives equal packs.
    """
    return pack_groups([(item,) for item in items], budget, min_shared=min_shared)


def pack_groups(
    groups: Sequence[Sequence[Sequence[int]]], budget: int, *, min_shared: int = MIN_SHARED
) -> list[list[int]]:
    """As `pack_sharing`, for items that stay together, such as the two answers of a pair: indices of groups.

    A group without tokens is in no pack.
    """
    packs: list[list[int]] = []
    room = 0
    before: Sequence[int] = ()
    for index in sort_by_prefix([group[0] for group in groups]):
        group = groups[index]
        if not any(group):
            continue
        # A common beginning is shared but for less than `min_shared` tokens at its end.
        own = sum(len(item) - _saved(group[0], item, min_shared) for item in group[1:])
        cost = own + len(group[0]) - _saved(before, group[0], min_shared)
        if not packs or cost > room:
            packs.append([])
            room, cost = budget, own + len(group[0])
        packs[-1].append(index)
        room -= cost
        before = group[0]
    return packs


def _saved(before: Sequence[int], item: Sequence[int], min_shared: int) -> int:
    """How many tokens of an item its neighbour holds already, at least."""
    return max(0, common_prefix(before, item) - min_shared + 1)
