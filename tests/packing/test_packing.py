"""Packs contain every example once and complete, and can be unpacked, with and without shared prefixes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.packing import pack, pack_examples, pack_groups, prefix_tree
from templatekit.packing.tree import Node
from templatekit.types import PackedBatch, RenderedText, TokenizedExample

LENGTHS = st.lists(st.integers(0, 40), max_size=40)


def _example(tokens: list[tuple[int, float]]) -> TokenizedExample:
    return TokenizedExample(
        input_ids=tuple(token for token, _ in tokens),
        loss_weights=tuple(weight for _, weight in tokens),
        rendered=RenderedText(text="", spans=()),
    )


class Document(NamedTuple):
    """An example, as far as it can be restored from a pack."""

    document: int
    input_ids: tuple[int, ...]
    """Without the last token if that token is not trained: a pack does not store it."""
    loss_weights: tuple[float, ...]
    """0 for the first token, which nothing predicts."""


def unpacked(batch: PackedBatch) -> list[Document]:
    """The examples of a pack, as far as they can be restored: the inverse of `pack_examples`."""
    documents = []
    for last in batch.segments:
        path, parent = [last], last.parent
        while parent is not None:
            path.insert(0, batch.segments[parent])
            parent = path[0].parent
        indices = [index for segment in path for index in range(segment.start, segment.end)]
        for document in last.documents:
            own = batch.target_documents == document
            ids = np.empty(len(indices) + 1, dtype=np.int64)
            ids[:-1] = batch.input_ids[indices]
            weights = np.zeros(len(indices) + 1, dtype=np.float32)
            # Positions restart with every example, and a target is the token after its position.
            predicted = batch.position_ids[batch.target_positions[own]] + 1
            ids[predicted] = batch.targets[own]
            weights[predicted] = batch.weights[own]
            known = len(indices) + int(weights[-1] > 0)
            documents.append(Document(document, tuple(ids[:known].tolist()), tuple(weights[:known].tolist())))
    return documents


def packs_of(items: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Packs of items that share prefixes, each a group of its own."""
    return pack_groups([(item,) for item in items], budget)


WEIGHTS = st.sampled_from([0.0, 0.0, 0.25, 1.0, 2.0])
TOKENS = st.tuples(st.integers(0, 200_000), WEIGHTS)
APART = st.lists(st.lists(TOKENS, min_size=1, max_size=12).map(_example), max_size=8)
# Long runs of only two ids, so that much is shared: by two examples, by all of them, by equal examples.
ALIKE = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.tuples(st.integers(0, 1), WEIGHTS), min_size=1, max_size=12)).map(
        lambda drawn: _example([(9, 0.0)] * drawn[0] + drawn[1])
    ),
    max_size=8,
)
EXAMPLES = APART | ALIKE
SHARE = st.booleans()


@given(lengths=LENGTHS, budget=st.integers(1, 50))
def test_every_item_is_in_one_pack_under_the_budget(lengths: list[int], budget: int) -> None:
    packs = pack(lengths, budget)
    assert sorted(item for items in packs for item in items) == [n for n, length in enumerate(lengths) if length]
    for items in packs:
        assert len(items) == 1 or sum(lengths[item] for item in items) <= budget
        assert items == sorted(items)
    assert pack(lengths, budget) == packs


@given(lengths=LENGTHS, budget=st.integers(1, 50))
def test_no_two_packs_would_fit_together(lengths: list[int], budget: int) -> None:
    sums = sorted(sum(lengths[item] for item in items) for items in pack(lengths, budget))
    assert len(sums) < 2 or sums[0] + sums[1] > budget


def test_packs_are_first_fit_with_the_longest_first() -> None:
    assert pack([3, 9, 4, 12, 5, 1], 10) == [[3], [1, 5], [2, 4], [0]]


@given(examples=EXAMPLES, share=SHARE)
def test_unpacking_gives_back_what_was_packed(examples: list[TokenizedExample], share: bool) -> None:
    batch = pack_examples(examples, range(len(examples)), share=share)
    expected = []
    for document, example in enumerate(examples):
        known = len(example) if example.loss_weights[-1] else len(example) - 1
        if len(example) > 1:
            weights = (0.0, *example.loss_weights[1:known])
            expected.append(Document(document, example.input_ids[:known], weights))
    assert sorted(unpacked(batch)) == expected


@given(examples=EXAMPLES)
def test_a_pack_predicts_within_examples_only(examples: list[TokenizedExample]) -> None:
    batch = pack_examples(examples, range(len(examples)))
    assert len(batch.input_ids) == len(batch.position_ids) == sum(s.end - s.start for s in batch.segments)
    assert (np.diff(batch.target_positions) > 0).all()
    assert (batch.weights > 0).all()
    end = 0
    for segment in batch.segments:
        (document,) = segment.documents
        example = examples[document]
        assert segment.start == end
        end = segment.end
        assert batch.position_ids[segment.start : segment.end].tolist() == list(range(len(example) - 1))
        inside = (batch.target_positions >= segment.start) & (batch.target_positions < segment.end)
        for position, target in zip(batch.target_positions[inside], batch.targets[inside], strict=True):
            assert target == example.input_ids[position - segment.start + 1]
    assert batch.weights.sum() == pytest.approx(sum(sum(example.loss_weights[1:]) for example in examples))


@given(examples=ALIKE)
def test_a_shared_pack_is_a_walk_over_a_tree(examples: list[TokenizedExample]) -> None:
    batch = pack_examples(examples, range(len(examples)), share=True)
    plain = pack_examples(examples, range(len(examples)))
    assert batch.tokens == plain.tokens == len(plain.input_ids) >= len(batch.input_ids)
    assert (np.diff(batch.target_positions) >= 0).all()
    assert sorted(d for segment in batch.segments for d in segment.documents) == [
        document for document, example in enumerate(examples) if len(example) > 1
    ]
    end = 0
    open_segments: list[int] = []
    for index, segment in enumerate(batch.segments):
        assert segment.start == end < segment.end
        end = segment.end
        while open_segments and open_segments[-1] != segment.parent:
            open_segments.pop()  # the tokens that continue a segment come directly after it
        assert (open_segments[-1] if open_segments else None) == segment.parent
        before = 0 if segment.parent is None else batch.position_ids[batch.segments[segment.parent].end - 1] + 1
        length = segment.end - segment.start
        assert batch.position_ids[segment.start : end].tolist() == list(range(before, before + length))
        open_segments.append(index)


@given(examples=ALIKE, min_shared=st.integers(1, 9))
def test_prefixes_that_are_long_enough_are_shared(examples: list[TokenizedExample], min_shared: int) -> None:
    items = [example.input_ids for example in examples]
    nodes = prefix_tree(items, min_shared=min_shared)
    paths: list[tuple[int, tuple[int, ...]]] = []
    for index, node in enumerate(nodes):
        path: tuple[int, ...] = ()
        at: int | None = index
        while at is not None:
            path, at = items[nodes[at].item][nodes[at].start : nodes[at].end] + path, nodes[at].parent
        paths += [(item, path) for item in node.ending]
        followers = [other for other in nodes if other.parent == index]
        assert node.end - node.start >= min_shared if followers else node.ending
    assert sorted(paths) == list(enumerate(items))
    for one, other in itertools.combinations(range(len(items)), 2):
        common = sum(itertools.accumulate((a == b for a, b in zip(items[one], items[other], strict=False)), min))
        held = [set(_chain(nodes, item)) for item in (one, other)]
        shared = sum(nodes[index].end - nodes[index].start for index in held[0] & held[1])
        assert common - min_shared < shared <= common


def _chain(nodes: list[Node], item: int) -> Iterator[int]:
    index = next((index for index, node in enumerate(nodes) if item in node.ending), None)
    while index is not None:
        yield index
        index = nodes[index].parent


@given(examples=EXAMPLES, budget=st.integers(1, 60))
def test_sharing_packs_hold_every_item_under_the_budget(examples: list[TokenizedExample], budget: int) -> None:
    items = [example.input_ids for example in examples]
    packs = packs_of(items, budget)
    assert sorted(item for pack in packs for item in pack) == list(range(len(items)))
    for members in packs:
        size = sum(node.end - node.start for node in prefix_tree([items[item] for item in members]))
        assert len(members) == 1 or size <= budget
    assert packs_of(items, budget) == packs


def test_examples_that_share_come_together() -> None:
    items = [(prefix,) * 20 + (row,) for row in range(3) for prefix in (1, 2)]
    assert packs_of(items, 40) == [[0, 2, 4], [1, 3, 5]]
    assert [len(pack) for pack in packs_of(items, 1000)] == [6]


def test_a_pack_names_the_documents_it_was_asked_for() -> None:
    examples = [_example([(row, 0.0), (row + 1, 1.0)]) for row in range(5)]
    batch = pack_examples(examples, [3, 1])
    assert [segment.documents for segment in batch.segments] == [(3,), (1,)]
    assert batch.input_ids.tolist() == [3, 1]
    assert batch.targets.tolist() == [4, 2]


def test_nothing_gives_an_empty_pack() -> None:
    batch = pack_examples([_example([(1, 1.0)])], [0])
    assert batch.segments == ()
    assert batch.input_ids.dtype == batch.targets.dtype == np.int64
    assert len(batch.input_ids) == len(batch.targets) == len(batch.weights) == 0
    assert unpacked(batch) == []


def test_packing_does_not_import_torch() -> None:
    code = "import sys, templatekit.packing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
