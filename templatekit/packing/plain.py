"""Packs of whole examples, each under a token budget; nothing is cut and nothing is shared between them.

The label shift is done here, once: an example's inputs are its ids without the last, and the token at position i has to
predict id i + 1. What follows never shifts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from templatekit.types import PackedBatch, Segment, TokenizedExample

Number = TypeVar("Number", np.int64, np.float32)


class Document(NamedTuple):
    """An example as a pack still knows it."""

    document: int
    input_ids: tuple[int, ...]
    """Without the last token where that token is not trained: a pack has no use for it."""
    loss_weights: tuple[float, ...]
    """0 for the first token, which nothing predicts."""


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


def pack_examples(examples: Sequence[TokenizedExample], documents: Sequence[int]) -> PackedBatch:
    """Lays `examples[d]` for each d of `documents` end to end, one segment each.

    Positions restart with every segment. An example of fewer than two tokens predicts nothing and takes no place.
    """
    input_ids: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    segments: list[Segment] = []
    target_positions: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    start = 0
    for document in documents:
        example = examples[document]
        length = len(example) - 1
        if length < 1:
            continue
        ids = np.asarray(example.input_ids, dtype=np.int64)
        shifted = np.asarray(example.loss_weights, dtype=np.float32)[1:]
        trained = np.flatnonzero(shifted)
        input_ids.append(ids[:-1])
        positions.append(np.arange(length, dtype=np.int64))
        segments.append(Segment(document=document, start=start, end=start + length))
        target_positions.append(trained + start)
        targets.append(ids[1:][trained])
        weights.append(shifted[trained])
        start += length
    return PackedBatch(
        input_ids=_join(input_ids, np.int64),
        position_ids=_join(positions, np.int64),
        segments=tuple(segments),
        target_positions=_join(target_positions, np.int64),
        targets=_join(targets, np.int64),
        weights=_join(weights, np.float32),
    )


def unpack(batch: PackedBatch) -> list[Document]:
    """The examples of a pack, as far as it still holds them: the inverse of `pack_examples`."""
    documents = []
    for segment in batch.segments:
        first, behind = np.searchsorted(batch.target_positions, [segment.start, segment.end])
        length = segment.end - segment.start
        ids = np.empty(length + 1, dtype=np.int64)
        ids[:-1] = batch.input_ids[segment.start : segment.end]
        weights = np.zeros(length + 1, dtype=np.float32)
        predicted = batch.target_positions[first:behind] - segment.start + 1
        ids[predicted] = batch.targets[first:behind]
        weights[predicted] = batch.weights[first:behind]
        known = length + int(weights[-1] > 0)
        documents.append(Document(segment.document, tuple(ids[:known].tolist()), tuple(weights[:known].tolist())))
    return documents


def _join(parts: list[NDArray[Number]], dtype: type[Number]) -> NDArray[Number]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)
