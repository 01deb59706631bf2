"""Packs as rows of a file: the values that trainers read, and which samples each pack has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from templatekit.packing import Packs, pack_arrays
from templatekit.packing.columns import list_array

if TYPE_CHECKING:
    import pyarrow as pa


def pack_record_batch(packs: Packs) -> pa.RecordBatch:
    """`pack_arrays` and the samples of each pack: `rows`, `samples`, and `sources` if there are several."""
    import pyarrow as pa

    sequences, offsets = packs.sequences, packs.sequence_offsets.astype(np.int32)
    arrays = pack_arrays(packs) | {
        "rows": list_array(offsets, sequences.rows),
        "samples": list_array(offsets, sequences.samples),
    }
    if any(sequences.sources):
        arrays["sources"] = list_array(offsets, pa.array(sequences.sources))
    return pa.record_batch(arrays)


def pack_rows(packs: Packs) -> Iterator[dict[str, Any]]:
    """Each pack as plain values; without weights if all are 0 or 1, without samples if all are their record's first."""
    sequences = packs.sequences
    labels, positions, lengths = packs.labels, packs.position_ids, sequences.lengths
    for (start, end), (first, last) in zip(
        pairwise(packs.offsets.tolist()), pairwise(packs.sequence_offsets.tolist()), strict=True
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
