"""Packs of whole examples: laid out as arrays, and read back.

The label shift is done here, once: an example's inputs are its ids without the last, and the token at position i has to
predict id i + 1. What follows never shifts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.tree import Node, prefix_tree
from templatekit.types import PackedBatch, Segment, TokenizedExample

Number = TypeVar("Number", np.int64, np.float32)


class Document(NamedTuple):
    """An example as a pack still knows it."""

    document: int
    input_ids: tuple[int, ...]
    """Without the last token where that token is not trained: a pack has no use for it."""
    loss_weights: tuple[float, ...]
    """0 for the first token, which nothing predicts."""


def pack_examples(
    examples: Sequence[TokenizedExample], documents: Sequence[int], *, share: bool = False
) -> PackedBatch:
    """Lays `examples[d]` for each d of `documents` into one row: end to end, or with `share` as a prefix tree.

    Positions restart with every example. An example of fewer than two tokens predicts nothing and takes no place.
    """
    inputs = [examples[document].input_ids[:-1] for document in documents]
    nodes = prefix_tree(inputs) if share else _apart(inputs)
    starts = np.cumsum([0, *(node.end - node.start for node in nodes)])
    segments = tuple(
        Segment(
            documents=tuple(documents[item] for item in node.ending),
            start=int(start),
            end=int(start) + node.end - node.start,
            parent=node.parent,
        )
        for node, start in zip(nodes, starts[:-1], strict=True)
    )
    positions, targets, weights, owners = [], [], [], []
    for index, segment in enumerate(segments):
        places = _places(segments, index)
        for document in segment.documents:
            example = examples[document]
            shifted = np.asarray(example.loss_weights, dtype=np.float32)[1:]
            trained = np.flatnonzero(shifted)
            positions.append(places[trained])
            targets.append(np.asarray(example.input_ids, dtype=np.int64)[1:][trained])
            weights.append(shifted[trained])
            owners.append(np.full(len(trained), document, dtype=np.int64))
    target_positions = _join(positions, np.int64)
    order = np.argsort(target_positions, kind="stable")
    return PackedBatch(
        input_ids=_join([np.asarray(inputs[n.item][n.start : n.end], dtype=np.int64) for n in nodes], np.int64),
        position_ids=_join([np.arange(node.start, node.end, dtype=np.int64) for node in nodes], np.int64),
        segments=segments,
        target_positions=target_positions[order],
        target_documents=_join(owners, np.int64)[order],
        targets=_join(targets, np.int64)[order],
        weights=_join(weights, np.float32)[order],
        tokens=sum(map(len, inputs)),
    )


def unpack(batch: PackedBatch) -> list[Document]:
    """The examples of a pack, as far as it still holds them: the inverse of `pack_examples`."""
    documents = []
    for index, segment in enumerate(batch.segments):
        places = _places(batch.segments, index)
        for document in segment.documents:
            own = batch.target_documents == document
            ids = np.empty(len(places) + 1, dtype=np.int64)
            ids[:-1] = batch.input_ids[places]
            weights = np.zeros(len(places) + 1, dtype=np.float32)
            # Positions restart with every example, and a target is the token behind its position.
            predicted = batch.position_ids[batch.target_positions[own]] + 1
            ids[predicted] = batch.targets[own]
            weights[predicted] = batch.weights[own]
            known = len(places) + int(weights[-1] > 0)
            documents.append(Document(document, tuple(ids[:known].tolist()), tuple(weights[:known].tolist())))
    return documents


def _apart(items: Sequence[Sequence[int]]) -> list[Node]:
    return [Node(index, 0, len(item), None, (index,)) for index, item in enumerate(items) if item]


def _places(segments: Sequence[Segment], index: int | None) -> NDArray[np.int64]:
    """Where the tokens of a document that ends with this segment stand in the pack."""
    runs = []
    while index is not None:
        runs.append(np.arange(segments[index].start, segments[index].end, dtype=np.int64))
        index = segments[index].parent
    return _join(runs[::-1], np.int64)


def _join(parts: list[NDArray[Number]], dtype: type[Number]) -> NDArray[Number]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)
