"""`SampleTables`: samples in Arrow tables, which are fast to pickle and to concatenate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from templatekit.cache.example_json import NotJsonSafe, example_to_json
from templatekit.cache.reader import TableColumns
from templatekit.packing.columns import TokenizedColumns
from templatekit.pipeline.batches import SampleBatch
from templatekit.types import Origin, RenderedText

if TYPE_CHECKING:
    import pyarrow as pa

_SPAN_SIZE = 3
"""Values of a span: start, end, and the index of its origin."""


class SampleTables(TableColumns):
    """Samples in tables in memory."""

    @classmethod
    def from_batch(cls, batch: SampleBatch) -> SampleTables:
        """The tables of a batch; raises `NotJsonSafe` for a sample that could not be restored from them."""
        import pyarrow as pa

        columns = batch.columns
        if columns is None:
            raise NotJsonSafe("texts without tokens")
        texts = list(columns.rendered)
        if any(text.source for text in texts):
            raise NotJsonSafe("the name of one of several sets")
        examples = [example_to_json(item.example) for item in batch.items]
        origins: dict[Origin, int] = {}
        roles: dict[str, int] = {}
        return cls(
            tokens=pa.record_batch(_token_columns(columns, texts)),
            texts=pa.record_batch(_text_columns(columns, texts, origins, roles)),
            examples=pa.record_batch({"example": pa.array(examples, type=pa.large_binary())}),
            origins=list(origins),
            roles=list(roles),
        )

    @classmethod
    def concatenate(cls, several: Iterable[SampleTables]) -> SampleTables:
        """One table after another, in contiguous memory; the result is the same however samples were divided."""
        found = list(several) or [cls.from_batch(SampleBatch(items=[], columns=TokenizedColumns.of([])))]
        origins: dict[Origin, int] = {}
        roles: dict[str, int] = {}
        texts = [_reindexed(one.texts, _indices(one.origins, origins), _indices(one.roles, roles)) for one in found]
        return cls(
            tokens=_concatenate([one.tokens for one in found]),
            texts=_concatenate(texts),
            examples=_concatenate([one.examples for one in found]),
            origins=list(origins),
            roles=list(roles),
        )


def _indices(names: Sequence[Any], index_of: dict[Any, int]) -> NDArray[np.int32]:
    """The index of each name; new names are added to `index_of`."""
    return np.array([index_of.setdefault(name, len(index_of)) for name in names], dtype=np.int32)


def _reindexed(texts: pa.RecordBatch, origins: NDArray[np.int32], roles: NDArray[np.int32]) -> pa.RecordBatch:
    """The table with index i of an origin or a role replaced by `origins[i]` or `roles[i]`."""
    spans = texts.column("spans").values.to_numpy().copy()
    spans[_SPAN_SIZE - 1 :: _SPAN_SIZE] = origins[spans[_SPAN_SIZE - 1 :: _SPAN_SIZE]]
    for name, values in (("spans", spans), ("roles", roles[texts.column("roles").values.to_numpy()])):
        column = texts.schema.get_field_index(name)
        texts = texts.set_column(column, name, _list_array(texts.column(name).offsets.to_numpy(), values))
    return texts


def _concatenate(tables: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    table = pa.Table.from_batches(tables).combine_chunks()
    return table.to_batches()[0] if table.num_rows else tables[0]


def _text_columns(
    columns: TokenizedColumns, texts: Sequence[RenderedText], origins: dict[Origin, int], roles: dict[str, int]
) -> dict[str, pa.Array]:
    import pyarrow as pa

    known: dict[int, tuple[int, Origin]] = {}  # by object id: there are few objects, and hashing an origin is slow

    def origin_index(origin: Origin) -> int:
        if id(origin) not in known:
            known[id(origin)] = origins.setdefault(origin, len(origins)), origin
        return known[id(origin)][0]

    spans = [[n for s in text.spans for n in (s.start, s.end, origin_index(s.origin))] for text in texts]
    targets = [[n for t in text.target_spans for n in (t.message, t.start, t.marker_start, t.end)] for text in texts]
    return {
        "text": pa.array([text.text for text in texts], type=pa.large_string()),
        "spans": _lists(spans, pa.int32()),
        "targets": _lists(targets, pa.int32()),
        "message_weights": _lists([text.message_weights for text in texts], pa.float64()),
        "roles": _lists([[roles.setdefault(role, len(roles)) for role in text.roles] for text in texts], pa.int32()),
        "history": pa.array([text.history for text in texts], type=pa.int32()),
        "loss_spans": _lists(
            [[n for s in spans for n in (s.start, s.end)] for spans in columns.loss_spans], pa.int32()
        ),
        "loss_span_weights": _lists([[s.weight for s in spans] for spans in columns.loss_spans], pa.float64()),
        "truncated": pa.array(list(columns.truncated), type=pa.string()),
    }


def _token_columns(columns: TokenizedColumns, texts: Sequence[RenderedText]) -> dict[str, pa.Array]:
    """The ids, and the weights as runs of equal values: they change rarely."""
    import pyarrow as pa

    weights, offsets = columns.loss_weights, columns.offsets
    starts = np.unique(np.concatenate([offsets[:-1], np.flatnonzero(weights[1:] != weights[:-1]) + 1]))
    starts = starts[starts < len(weights)].astype(np.int64)
    runs = np.searchsorted(starts, offsets)
    return {
        "row": pa.array([text.row for text in texts], type=pa.int64()),
        "sample": pa.array([text.sample for text in texts], type=pa.int32()),
        "samples": pa.array([text.samples for text in texts], type=pa.int32()),
        "input_ids": _list_array(offsets, columns.input_ids),
        "weights": _list_array(runs, weights[starts]),
        "run_lengths": _list_array(runs, np.diff(np.append(starts, len(weights))).astype(np.int32)),
    }


def _lists(values: Sequence[Sequence[Any]], kind: pa.DataType) -> pa.LargeListArray:
    import pyarrow as pa

    return pa.array(values, type=pa.large_list(kind))


def _list_array(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.LargeListArray:
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array(offsets.astype(np.int64)), pa.array(values))
