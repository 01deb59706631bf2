"""Builds the arrays of a pack: whole examples one after another, or as a prefix tree.

The label shift happens here, and only here: the inputs of an example are its ids without the last one, and the token at
position i has to predict id i + 1. Code that reads a `PackedBatch` never shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from templatekit.packing.tree import Node, prefix_tree
from templatekit.types import PackedBatch, Segment, TokenizedExample

Scalar = TypeVar("Scalar", np.int64, np.float32)


def pack_examples(
    examples: Sequence[TokenizedExample], documents: Sequence[int], *, share: bool = False
) -> PackedBatch:
    """Put `examples[d]` for each d of `documents` into one pack: one after another, or with `share` as a prefix tree.

    Positions restart with every example. An example of fewer than two tokens predicts nothing and is left out.
    """
    inputs = [examples[document].input_ids[:-1] for document in documents]
    nodes = prefix_tree(inputs) if share else _separate_nodes(inputs)
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
    for segment, path in zip(segments, segment_paths(segments), strict=True):
        for document in segment.documents:
            example = examples[document]
            shifted = np.asarray(example.loss_weights, dtype=np.float32)[1:]
            trained = np.flatnonzero(shifted)
            positions.append(path[trained])
            targets.append(np.asarray(example.input_ids, dtype=np.int64)[1:][trained])
            weights.append(shifted[trained])
            owners.append(np.full(len(trained), document, dtype=np.int64))
    target_positions = _concatenated(positions, np.int64)
    order = np.argsort(target_positions, kind="stable")
    return PackedBatch(
        input_ids=_concatenated([np.asarray(inputs[n.item][n.start : n.end], dtype=np.int64) for n in nodes], np.int64),
        position_ids=_concatenated([np.arange(node.start, node.end, dtype=np.int64) for node in nodes], np.int64),
        segments=segments,
        target_positions=target_positions[order],
        target_documents=_concatenated(owners, np.int64)[order],
        targets=_concatenated(targets, np.int64)[order],
        weights=_concatenated(weights, np.float32)[order],
        tokens=sum(map(len, inputs)),
    )


def _separate_nodes(items: Sequence[Sequence[int]]) -> list[Node]:
    return [Node(index, 0, len(item), None, (index,)) for index, item in enumerate(items) if item]


def segment_paths(segments: Sequence[Segment]) -> list[NDArray[np.int64]]:
    """Return the path of each segment: the tokens of its documents, from the first one to the segment's end.

    A path has shape (tokens,) and holds indices into the tokens of the pack. Parents come before their children.
    """
    paths: list[NDArray[np.int64]] = []
    for segment in segments:
        own = np.arange(segment.start, segment.end, dtype=np.int64)
        paths.append(own if segment.parent is None else np.concatenate([paths[segment.parent], own]))
    return paths


def _concatenated(arrays: list[NDArray[Scalar]], dtype: type[Scalar]) -> NDArray[Scalar]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
