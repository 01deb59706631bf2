"""Packs as rows: what trainers read of them, and which examples they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from templatekit.packing import Packs, pack_arrays
from templatekit.packing.columns import list_array

if TYPE_CHECKING:
    import pyarrow as pa


def pack_batch(packs: Packs) -> pa.RecordBatch:
    """What `pack_arrays` gives, and which examples they are: `rows`, `samples`, `sources` where there are several."""
    import pyarrow as pa

    sequences, edges = packs.sequences, packs.edges.astype(np.int32)
    arrays = pack_arrays(packs) | {
        "rows": list_array(edges, sequences.rows),
        "samples": list_array(edges, sequences.samples),
    }
    if any(sequences.sources):
        arrays["sources"] = list_array(edges, pa.array(sequences.sources))
    return pa.record_batch(arrays)


def pack_rows(packs: Packs) -> Iterator[dict[str, Any]]:
    """Pack by pack as plain values, without what says nothing: weights of 0 and 1, first samples."""
    sequences = packs.sequences
    labels, positions, lengths = packs.labels, packs.position_ids, sequences.lengths
    for (start, end), (first, last) in zip(
        pairwise(packs.offsets.tolist()), pairwise(packs.edges.tolist()), strict=True
    ):
        weights, samples = sequences.loss_weights[start:end], sequences.samples[first:last]
        row = {
            "input_ids": sequences.input_ids[start:end].tolist(),
            "labels": labels[start:end].tolist(),
            "position_ids": positions[start:end].tolist(),
            "seq_lengths": lengths[first:last].tolist(),
            "rows": sequences.rows[first:last].tolist(),
        }
        if np.any((weights != 0) & (weights != 1)):
            row["loss_weights"] = weights.tolist()
        if samples.any():
            row["samples"] = samples.tolist()
        if any(sequences.sources[first:last]):
            row["sources"] = list(sequences.sources[first:last])
        yield row
