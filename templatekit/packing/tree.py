"""Prefix trees: tokens that several examples start with are stored in a pack once.

In a causal model the hidden states of a common prefix are the same for all examples that start with it, and its
gradient is the sum of theirs. So a template's preamble, a system prompt, the earlier turns of a conversation or the
prompt of a chosen/rejected pair are computed once per pack, and loss and gradients do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MIN_SHARED = 8
"""The smallest number of tokens worth sharing, because attention is computed separately for each shared run."""


class Node(NamedTuple):
    """A run of tokens that one or more items contain at the same position, after the same tokens."""

    item: int
    """One of those items: the run is `items[item][start:end]`."""
    start: int
    end: int
    parent: int | None
    """Index of the node before it, which comes earlier in the list."""
    ending: tuple[int, ...]
    """The items that end with this node."""


def prefix_tree(items: Sequence[Sequence[int]], *, min_shared: int = MIN_SHARED) -> list[Node]:
    """The prefix tree of the items, depth first: a node comes before all nodes below it.

    A run that several items share becomes a node of its own if it has at least `min_shared` tokens, or if the items are
    equal. Every item ends with one node; an item without tokens is in none.
    """
    order = [index for index in _sorted_by_prefix(items) if items[index]]
    shared = [_common_prefix(items[one], items[other]) for one, other in pairwise(order)]
    nodes: list[Node] = []
    # An entry is a range of `order` whose items agree on their first `depth` tokens, and the node of the last of them.
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
        # Neighbours that share the common tokens alone go to different ranges.
        cuts = [low, *(index + 1 for index in range(low, high - 1) if shared[index] == common), high]
        stack += [(start, end, depth, parent) for start, end in reversed([*pairwise(cuts)]) if start < end]
    return nodes


def pack_groups(groups: Sequence[Sequence[Sequence[int]]], budget: int) -> list[list[int]]:
    """Put groups of items into packs whose prefix trees have at most `budget` tokens; similar groups go together.

    The items of a group stay together, such as the two answers of a pair. Returns the indices of each pack's groups.
    Equal input gives equal packs. A group larger than the budget gets a pack of its own; a group without tokens is in
    no pack.
    """
    packs: list[list[int]] = []
    room = 0
    before: Sequence[int] = ()
    for index in _sorted_by_prefix([group[0] for group in groups]):
        group = groups[index]
        if not any(group):
            continue
        # A common prefix is shared, except for fewer than `MIN_SHARED` tokens at its end.
        own = sum(len(item) - _saved_tokens(group[0], item) for item in group[1:])
        cost = own + len(group[0]) - _saved_tokens(before, group[0])
        if not packs or cost > room:
            packs.append([])
            room, cost = budget, own + len(group[0])
        packs[-1].append(index)
        room -= cost
        before = group[0]
    return packs


def _sorted_by_prefix(items: Sequence[Sequence[int]]) -> list[int]:
    """The indices of the items, ordered so that items with a long common prefix are neighbours."""
    return sorted(range(len(items)), key=lambda index: (items[index], index))


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix of two items."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # one[:low] is equal, one[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def _saved_tokens(before: Sequence[int], item: Sequence[int]) -> int:
    """A lower bound of how many tokens an item shares with the item before it in a pack."""
    return max(0, _common_prefix(before, item) - MIN_SHARED + 1)
