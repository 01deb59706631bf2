"""Packs hold every example once, whole, and give it back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.packing import Document, pack, pack_examples, unpack
from templatekit.types import RenderedText, TokenizedExample

LENGTHS = st.lists(st.integers(0, 40), max_size=40)


def _example(tokens: list[tuple[int, float]]) -> TokenizedExample:
    return TokenizedExample(
        input_ids=tuple(token for token, _ in tokens),
        loss_weights=tuple(weight for _, weight in tokens),
        rendered=RenderedText(text="", spans=()),
    )


TOKENS = st.tuples(st.integers(0, 200_000), st.sampled_from([0.0, 0.0, 0.25, 1.0, 2.0]))
EXAMPLES = st.lists(st.lists(TOKENS, min_size=1, max_size=12).map(_example), max_size=8)


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


@given(examples=EXAMPLES)
def test_unpacking_gives_back_what_was_packed(examples: list[TokenizedExample]) -> None:
    batch = pack_examples(examples, range(len(examples)))
    expected = []
    for document, example in enumerate(examples):
        known = len(example) if example.loss_weights[-1] else len(example) - 1
        if len(example) > 1:
            weights = (0.0, *example.loss_weights[1:known])
            expected.append(Document(document, example.input_ids[:known], weights))
    assert unpack(batch) == expected


@given(examples=EXAMPLES)
def test_a_pack_predicts_within_examples_only(examples: list[TokenizedExample]) -> None:
    batch = pack_examples(examples, range(len(examples)))
    assert len(batch.input_ids) == len(batch.position_ids) == sum(s.end - s.start for s in batch.segments)
    assert (np.diff(batch.target_positions) > 0).all()
    assert (batch.weights > 0).all()
    end = 0
    for segment in batch.segments:
        example = examples[segment.document]
        assert segment.start == end
        end = segment.end
        assert batch.position_ids[segment.start : segment.end].tolist() == list(range(len(example) - 1))
        inside = (batch.target_positions >= segment.start) & (batch.target_positions < segment.end)
        for position, target in zip(batch.target_positions[inside], batch.targets[inside], strict=True):
            assert target == example.input_ids[position - segment.start + 1]
    assert batch.weights.sum() == pytest.approx(sum(sum(example.loss_weights[1:]) for example in examples))


def test_a_pack_names_the_documents_it_was_asked_for() -> None:
    examples = [_example([(row, 0.0), (row + 1, 1.0)]) for row in range(5)]
    batch = pack_examples(examples, [3, 1])
    assert [segment.document for segment in batch.segments] == [3, 1]
    assert batch.input_ids.tolist() == [3, 1]
    assert batch.targets.tolist() == [4, 2]


def test_nothing_gives_an_empty_pack() -> None:
    batch = pack_examples([_example([(1, 1.0)])], [0])
    assert batch.segments == ()
    assert batch.input_ids.dtype == batch.targets.dtype == np.int64
    assert len(batch.input_ids) == len(batch.targets) == len(batch.weights) == 0
    assert unpack(batch) == []


def test_packing_does_not_import_torch() -> None:
    code = "import sys, templatekit.packing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
